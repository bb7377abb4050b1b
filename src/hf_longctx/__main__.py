"""`python -m hf_longctx` is the command `hf-longctx`."""

from hf_longctx.cli import main

if __name__ == "__main__":
    main()
