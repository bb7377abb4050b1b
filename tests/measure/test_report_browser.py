"""The page in a real browser: nothing blank, nothing fetched, nothing wider than the screen."""

import json
import shutil
import subprocess

import pytest

from hf_longctx.measure.report import write
from run_folders import make_rows, make_summary, save

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
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
<iframe src="copy.html" style="width:390px;height:844px;border:0"></iframe>
<iframe src="copy.html" style="width:1280px;height:800px;border:0"></iframe>"""


def chromium(folder, *arguments):
    command = [CHROMIUM, *FLAGS, f"--user-data-dir={folder / 'profile'}", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=90, check=True)


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_a_browser_shows_the_page_on_a_phone_and_on_a_desk(tmp_path):
    from matplotlib.image import imread

    rows = list(make_rows(text="unbroken" * 60))
    summary = make_summary(rows, command="hf-longctx " + "x" * 400)
    folder = save(tmp_path / "run", rows, summary)
    write(folder)
    html = (folder / "report.html").read_text(encoding="utf-8")
    opened = html.replace("<details>", "<details open>")
    (folder / "copy.html").write_text(opened.replace("</body>", PROBE + "</body>"), encoding="utf-8")
    (folder / "wrapper.html").write_text(WRAPPER, encoding="utf-8")
    shown = chromium(tmp_path, "--virtual-time-budget=4000", "--dump-dom", (folder / "wrapper.html").as_uri())
    assert "CONSOLE" not in shown.stderr
    views = json.loads(shown.stdout.split('<pre id="found">')[1].split("</pre>")[0])
    assert {view["width"] for view in views} == {390, 1280}
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
