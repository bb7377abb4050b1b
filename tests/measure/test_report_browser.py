"""The page in a real browser: nothing blank, nothing fetched, nothing wider than the screen."""

import json
import re
import shutil
import subprocess

import pytest

from hf_longctx.measure.report import write
from run_folders import make_cost_rows, make_rows, make_summary, make_task_rows, make_task_summary, save, save_cost

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
NEEDS_BROWSER = pytest.mark.skipif(
    CHROMIUM is None,
    reason="no chromium, chromium-browser or google-chrome on the PATH: that a hostile <script> is inert and that the "
    "page fits a phone was NOT tried in a browser; install one of them",
)
FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--enable-logging=stderr"),
]
PROBE = """<script>
addEventListener("error", event => { document.documentElement.dataset.error = event.message; });
addEventListener("load", () => parent.postMessage({
  width: innerWidth, content: document.documentElement.scrollWidth,
  requests: performance.getEntriesByType("resource").map(entry => entry.name),
  error: document.documentElement.dataset.error || null, height: document.documentElement.scrollHeight,
}, "*"));
</script>"""
WRAPPER = """<!doctype html><body><script>
const found = [];
addEventListener("message", event => {
  found.push(event.data);
  if (found.length === 2) document.body.innerHTML = "<pre id=found></pre>", document.querySelector("pre").textContent =
    JSON.stringify(found);
});
</script>
<iframe src="copy.html" style="width:375px;height:844px;border:0"></iframe>
<iframe src="copy.html" style="width:1280px;height:800px;border:0"></iframe>"""


POLICY = re.compile(r'<meta http-equiv="Content-Security-Policy"[^>]*>')
HOSTILE = (
    "<script>document.title='owned'</script></script></style><img src=x onerror=\"document.title='owned'\">"
    "\" onfocus=\"document.title='owned'\" autofocus x=\"' onmouseover='document.title=1' "
    "</title><svg/onload=alert(1)>"
)


COUNT = """<script>addEventListener("load", () => {
  const foreign = "[onfocus],[onmouseover],[onerror],[onload],[autofocus],img,svg:not([viewBox]),script[src]";
  document.documentElement.dataset.foreign = document.querySelectorAll(foreign).length;
});</script>"""


def without_policy(html):
    """The page as it would be if nothing but the escaping protected it."""
    return POLICY.sub("", html, count=1)


def chromium(folder, *arguments):
    command = [CHROMIUM, *FLAGS, f"--user-data-dir={folder / 'profile'}", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=90, check=True)


@NEEDS_BROWSER
def test_a_browser_shows_the_page_on_a_phone_and_on_a_desk(tmp_path):
    from matplotlib.image import imread

    rows = list(make_rows(text="unbroken" * 60))
    bins = [{"start": 0, "stop": 1024, "tokens": 9, "perplexity": 3.0, "kl": 0.1}]
    summary = make_summary(rows, command="hf-longctx " + "x" * 400, damage={"window": bins})
    folder = save(tmp_path / "run", rows, summary)
    save_cost(folder, make_cost_rows(text="x" * 300))
    write(folder)
    html = without_policy((folder / "report.html").read_text(encoding="utf-8"))
    opened = html.replace("<details>", "<details open>")
    (folder / "copy.html").write_text(opened.replace("</body>", PROBE + "</body>"), encoding="utf-8")
    (folder / "wrapper.html").write_text(WRAPPER, encoding="utf-8")
    shown = chromium(tmp_path, "--virtual-time-budget=4000", "--dump-dom", (folder / "wrapper.html").as_uri())
    assert "CONSOLE" not in shown.stderr
    views = json.loads(shown.stdout.split('<pre id="found">')[1].split("</pre>")[0])
    assert {view["width"] for view in views} == {375, 1280}
    for view in views:
        assert view["content"] <= view["width"]
        assert view["requests"] == []
        assert view["error"] is None
        assert view["height"] > 1500
    picture = tmp_path / "page.png"
    page_file = (folder / "report.html").as_uri()
    shown = chromium(tmp_path, "--window-size=1280,1400", f"--screenshot={picture}", page_file)
    assert "CONSOLE" not in shown.stderr
    pixels = imread(picture)[:, :, :3]
    assert pixels.shape[:2] == (1400, 1280)
    assert len({tuple(pixel) for line in (pixels[::9, ::9] * 255).round().tolist() for pixel in line}) > 10


def hostile_run(folder):
    """Every field that a model, a user or a file may fill."""
    rows = [row | {"variant": HOSTILE, "question": HOSTILE} for row in make_task_rows(["stock"], text=HOSTILE)]
    rows += [dict(rows[0], trial=9, outcome="invalid", reason=HOSTILE, score=None)]
    entry = {
        "definition": {"rope": HOSTILE, "attention": HOSTILE},
        "claimed": 8192,
        "plan": {HOSTILE: HOSTILE, "layers": [{"index": 0, HOSTILE: HOSTILE}]},
        "dispatched": {HOSTILE: HOSTILE},
    }
    bins = [{"start": 0, "stop": 1024, "tokens": 9, "perplexity": 3.0, "kl": 0.1}]
    summary = make_task_summary(
        [],
        model=HOSTILE,
        command=HOSTILE,
        versions={HOSTILE: HOSTILE},
        hardware={"cpu": HOSTILE},
        started=HOSTILE,
        haystack={"label": HOSTILE},
        variants={HOSTILE: entry, "window": entry},
        damage={HOSTILE: bins},
    )
    summary["settings"]["style"] = HOSTILE
    save(folder, rows, summary)
    costs = [row | {"variant": HOSTILE} for row in make_cost_rows(["standard"], text=HOSTILE)]
    return save_cost(folder, costs, [HOSTILE], settings={"model": HOSTILE}, command=HOSTILE)


@NEEDS_BROWSER
def test_hostile_text_is_inert_in_a_browser(tmp_path, caplog):
    from hf_longctx.measure import compare_page, runs
    from hf_longctx.measure.compare import compare

    folder = hostile_run(tmp_path / "run")
    write(folder)
    run = runs.read(folder)
    compare_page.write(compare(run, run), folder / "comparison.html")
    for name in ("report.html", "comparison.html"):
        # Twice: the policy forbids foreign scripts, and without it the escaping alone must do.
        page = folder / name
        bare = folder / f"bare-{name}"
        html = without_policy(page.read_text(encoding="utf-8"))
        bare.write_text(html.replace("</body>", COUNT + "</body>"), encoding="utf-8")
        for file in (page, bare):
            shown = chromium(tmp_path, "--virtual-time-budget=2000", "--dump-dom", file.as_uri())
            title = shown.stdout.split("<title>")[1].split("</title>")[0]
            assert title.endswith(("hf_longctx report", "hf_longctx comparison")), file.name
            assert ('data-foreign="0"' in shown.stdout) is (file == bare)
            assert shown.stdout.count("<script") == (2 if file == bare else 1)
            assert "<button" in shown.stdout  # the page's own script does run, under its policy too
            assert "CONSOLE" not in shown.stderr


@NEEDS_BROWSER
def test_a_table_is_sorted_by_its_header_and_back(tmp_path):
    folder = save_cost(tmp_path / "run", make_cost_rows())
    write(folder)
    html = without_policy((folder / "report.html").read_text(encoding="utf-8"))
    click = """<script>addEventListener("load", () => {
      const table = document.querySelector("table.sortable"), head = table.tHead.rows[0].cells;
      const column = at => [...table.tBodies[0].rows].map(row => row.cells[at].textContent.trim());
      const found = [column(1)];
      head[1].querySelector("button").click(); head[1].querySelector("button").click();
      found.push(column(1), [head[1].getAttribute("aria-sort")]);
      head[2].querySelector("button").focus(); document.activeElement.click();
      found.push(column(2));
      document.body.innerHTML = "<pre></pre>"; document.querySelector("pre").textContent = JSON.stringify(found);
    });</script>"""
    (folder / "copy.html").write_text(html.replace("</body>", click + "</body>"), encoding="utf-8")
    shown = chromium(tmp_path, "--virtual-time-budget=2000", "--dump-dom", (folder / "copy.html").as_uri())
    before, lengths, direction, times = json.loads(shown.stdout.split("<pre>")[1].split("</pre>")[0])
    assert before == ["1K"] * 3 + ["2K"] * 3 + ["4K"] * 3
    assert lengths == ["4K"] * 3 + ["2K"] * 3 + ["1K"] * 3
    assert direction == ["descending"]
    assert [time.split()[0] for time in times] == ["341", "512", "683", "1.02", "1.02", "1.37", "2.05", "2.05", "out"]
