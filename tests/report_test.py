import html
import json
import os
import re
import subprocess
import sys

import pytest

from r1jax import metrics, report
from r1jax.errors import InputError
from r1jax.pages import side_by_side
from tests import browser, run_directory


def lines_to(workdir, lines):
  workdir.mkdir(exist_ok=True)
  with open(workdir / "metrics.jsonl", "w") as f:
    for i, line in enumerate(lines):
      f.write(json.dumps({"stage": "zero", "time": 1e9 + i} | line) + "\n")
  return workdir


def text_of(path):
  """The page's text without tags, white space as single spaces."""
  body = re.sub(r"<(script|style)\b.*?</\1>", " ", path.read_text(), flags=re.S)
  return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", body)).split())


def headline_of(path):
  h1 = re.search(r"<h1>(.*?)</h1>", path.read_text(), flags=re.S).group(1)
  return html.unescape(re.sub(r"<[^>]*>", "", h1)).replace("\u00a0", " ")


def evaluation(step, accuracy, length, *, half=0.04):
  return {
    "step": step,
    "eval/heldout/accuracy": accuracy,
    "eval/heldout/accuracy_low": accuracy - half,
    "eval/heldout/accuracy_high": accuracy + half,
    "eval/heldout/length_mean": length,
    "eval/heldout/n": 500,
  }


def test_the_page_tells_the_result_in_numbers(tmp_path):
  path = report.write_report(run_directory.make(tmp_path / "quickstart"))
  assert path == tmp_path / "quickstart" / "report.html"
  assert headline_of(path) == (
    "Held-out accuracy rose from 31.5 % to 95.5 %, while the mean response grew "
    "from 9.4 to 27.8 tokens."
  )
  text = text_of(path)
  assert "95 % intervals 27.5 to 35.1 % before and 93.6 to 97.1 % after." in text
  assert "The two intervals overlap" not in text
  assert "400 of base, then 300 of zero" in text
  for title in (
    *("Held-out accuracy", "Held-out response length", "Reward", "Training accuracy"),
    *("Response length", "Answers cut off", "Groups without a signal", "Entropy"),
    *("KL to the reference", "Clipped tokens", "Log-prob gap", "Policy loss"),
    *("Gradient norm", "Learning rate", "Speed", "Step time by phase"),
    *("Share of the machine&#39;s limit", "Idle slots"),
    *("Cross-entropy", "rollout/idle_slot_steps", "pack/waste"),
  ):
    assert f'<span class="title">{title}</span>' in path.read_text(), title
  assert "python -m r1jax.train --config=configs/quickstart.py" in text
  assert "zero.optim.lr 0.0003" in text
  assert "f40eab2c0ffee" in text and "jax 0.10.2" in text


def test_the_time_of_a_step_is_a_table(tmp_path):
  """Medians without the step that compiles; what no phase has is a row of its own."""

  def line(step, seconds, **more):
    whole = {"step": step, "time/step_s": seconds, "time/rollout_s": seconds / 2}
    return whole | {"time/update_s": seconds / 4} | more

  fast = {"rollout/tokens_per_s_per_device": 1234.0, "rollout/idle_share": 0.25}
  lines = [line(1, 60.0), line(2, 2.0, **fast), line(3, 4.0), line(4, 2.0)]
  lines[2] |= {"time/save_s": 0.4, "update/share_of_limit": 0.375}
  path = report.write_report(lines_to(tmp_path / "run", lines))
  for row in (
    "rollout 1 50.0 % 1,234 – 25.0 %",
    "update 0.5 25.0 % – 37.5 % –",
    "save 0 5.0 % – – –",
    "other 0.5 20.0 % – – –",
    "step 2 100.0 % – – –",
  ):
    assert row in text_of(path)
  bare = report.write_report(lines_to(tmp_path / "bare", [{"step": 1, "x": 1}]))
  assert "Time of a step" not in bare.read_text()


@pytest.mark.parametrize(
  ("lines", "want", "overlaps"),
  [
    (
      [evaluation(0, 0.5, 40), evaluation(9, 0.3, 20)],
      "Held-out accuracy fell from 50.0 % to 30.0 %, while the mean response went "
      "from 40.0 to 20.0 tokens.",
      False,
    ),
    (
      [evaluation(0, 0.5, 40), evaluation(9, 0.55, 41)],
      "Held-out accuracy rose from 50.0 % to 55.0 %, while the mean response grew "
      "from 40.0 to 41.0 tokens.",
      True,
    ),
    ([evaluation(0, 0.5, 40)], "Held-out accuracy is 50.0 %.", False),
    (
      [{"step": 1, "reward/total": 0.25}, {"step": 2, "reward/total": 0.75}],
      "Mean reward rose from 0.25 to 0.75 over 2 steps of zero.",
      False,
    ),
    (
      [{"step": s, "stage": "base", "loss/cross_entropy": 3 / s} for s in (1, 2)],
      "Cross-entropy fell from 3 to 1.5 nats per token over 2 steps of base.",
      False,
    ),
    ([{"step": 1, "x": 1}], "A run of zero.", False),
    ([{"step": 1, "loss/policy": None}], "A run of zero.", False),
  ],
)
def test_headlines_of_other_runs(tmp_path, lines, want, overlaps):
  path = report.write_report(lines_to(tmp_path / "run", lines))
  assert headline_of(path) == want
  assert ("The two intervals overlap." in text_of(path)) == overlaps


def test_the_same_problems_side_by_side(tmp_path):
  """R22: samples can be seen on the page, thinking apart, with their reward parts."""
  path = report.write_report(run_directory.make(tmp_path / "run"))
  page, text = path.read_text(), text_of(path)
  assert page.count('<details class="problem"') == side_by_side.MAX_PROBLEMS
  assert page.count('<article class="try">') == 3 * side_by_side.MAX_PROBLEMS
  assert "Before step 0" in text
  assert "Half way step 140" in text
  assert "After step 300" in text
  assert "✗ wrong" in text and "✓ right" in text
  assert re.search(r"reward 1\.1 : accuracy 1, format 1 +\d+ tokens", text)
  assert "tokens, cut off" in text
  assert re.search(r'<div class="think">.*?a[-+*]\d=\d', page)
  assert "&lt;think&gt;" not in page, "tags in their order are shown as blocks"


def test_a_quick_start_has_its_lineage_below_its_facts(tmp_path):
  page = report.write_report(run_directory.make(tmp_path / "run")).read_text()
  assert page.count('<svg class="lineage"') == 1
  assert page.index('<svg class="lineage"') > page.index('<section id="how">')
  assert "zero: weights from base (init)" in page
  for section in ("lineage", "stages", "compared", "data"):
    assert f'<section id="{section}">' not in page


def test_a_recipe_is_told_stage_by_stage(tmp_path):
  path = report.write_report(run_directory.recipe(tmp_path / "run"))
  page, text = path.read_text(), text_of(path)
  assert headline_of(path) == (
    "Held-out accuracy is 87.0 % after r1, 64.0 % after distilled and 31.0 % after "
    "student_rl."
  )
  assert "84.1 to 89.9 % after r1, 59.0 to 69.0 % after distilled" in text
  assert "r1 81.0 % 87.0 % 84.1 to 89.9 % 97.4 %" in text
  assert "Held-out accuracy 87.0 % after r1, 81.0 % before" in text
  assert "2 before zero, 14 after zero, 12 after cold, 23 after reasoning" in text
  assert page.index('<svg class="lineage"') < page.index('<section id="stages">')
  assert "r1: weights from sft (init) and helpful (reward.models.helpfulness" in page
  assert '<a href="#stage-3"><text class="name"' in page, "boxes lead to the curves"
  assert page.count('<details class="stage">') == 17, "data stages have none"
  assert "8,192" in text and "wrong 6,412 accuracy 0 prompt 2 a0 = ?" in text
  assert "maths 1,505 28.4" in text
  assert "Dropped nothing: duplicates." in text


def test_a_recipe_of_one_end_and_of_stages_to_come(tmp_path):
  stages = tuple(run_directory.RECIPE)[:6]
  path = report.write_report(run_directory.recipe(tmp_path / "run", stages))
  assert headline_of(path) == (
    "Held-out accuracy is 83.0 % after reasoning, and was 12.0 % before zero."
  )
  assert "Not begun: sft_data, sft, at_sft, pairs" in text_of(path)
  assert '<section id="compared">' not in path.read_text()


def test_data_stages_alone_do_not_make_a_recipe(tmp_path):
  """One stage was evaluated: the page is about its steps."""
  run_directory.recipe(tmp_path / "run", ("base", "zero", "cold_data"))
  path = report.write_report(tmp_path / "run")
  text = text_of(path)
  assert headline_of(path).startswith("Held-out accuracy rose from 12.0 % to 71.0 %")
  assert "Training steps: 200 of base, then 60 of zero." in text
  assert "Curves of zero 60 steps" in text and "Curves of cold_data" not in text
  assert "cold_data rejection, 1,612 lines made, 6,565 dropped" in text


def test_samples_beyond_the_metrics_are_left_out(tmp_path):
  """A run that went back to a checkpoint may have files of later steps."""
  workdir = run_directory.make(tmp_path / "run")
  folder = workdir / "samples" / "zero"
  (folder / "eval_heldout_000999.jsonl").write_text("damaged")
  assert "step 999" not in text_of(report.write_report(workdir))


def test_what_all_prompts_share_is_shown_once(tmp_path):
  workdir = lines_to(tmp_path / "run", [evaluation(0, 0.5, 40)])
  folder = workdir / "samples" / "zero"
  folder.mkdir(parents=True)
  shared = "A conversation between User and Assistant. " * 3 + "User: "
  with open(folder / "eval_heldout_000000.jsonl", "w") as f:
    for i in range(3):
      prompt = f"{shared}Question {i}? Assistant: <think>"
      record = {"problem_id": f"p{i}", "prompt": prompt, "completion": "so</think>4"}
      f.write(json.dumps(record) + "\n")
  page = report.write_report(workdir).read_text()
  assert page.count(shared.strip()) == 1
  assert ">Question 2? Assistant:" in page.replace("\n", "")
  assert '<div class="think"><span class="what">thinking</span>so</div>' in page
  assert '<div class="plain">4</div>' in page


def test_a_long_run_stays_small(tmp_path):
  workdir = run_directory.make(
    tmp_path / "run", base_steps=4000, steps=6000, eval_every=10
  )
  path = report.write_report(workdir)
  assert path.stat().st_size < 1_000_000
  assert max(map(len, re.findall(r' d="([^"]*)"', path.read_text()))) < 20_000


def test_long_text_is_clipped_and_its_end_kept(tmp_path):
  workdir = lines_to(tmp_path / "run", [evaluation(0, 0.5, 40)])
  folder = workdir / "samples" / "zero"
  folder.mkdir(parents=True)
  completion = "<think>" + "wait " * 40_000 + "</think><answer>last words</answer>" * 99
  record = {"problem_id": "p", "prompt": "q", "completion": completion}
  (folder / "eval_heldout_000000.jsonl").write_text(json.dumps(record) + "\n")
  path = report.write_report(workdir)
  assert path.stat().st_size < 100_000
  assert "characters left out" in text_of(path)
  assert "answer last words" in text_of(path)
  assert "pieces more" in text_of(path)


def test_warnings_stand_at_the_top(tmp_path):
  """R15: answers that are cut off are said before any curve. R20: late compiles."""
  lines = [
    {"step": s, "rollout/truncated": 0.3, "compile/count": 6 + (s > 5)}
    for s in range(10)
  ]
  text = text_of(report.write_report(lines_to(tmp_path / "run", lines)))
  assert "30.0 % of the last answers of zero were cut off" in text
  assert "zero compiled 1 more programs after its first step" in text


@pytest.mark.parametrize(
  ("arguments", "want"),
  [
    (["--workdir={tmp}/absent"], "absent is not a folder"),
    (["--workdir={tmp}"], "has no metrics"),
    ([], "--workdir=DIR is needed"),
    (["--workdri={tmp}"], "workdri"),
    (["--workdir={tmp}", "more"], "more"),
  ],
)
def test_bad_input_is_one_line_and_exit_code_2(tmp_path, arguments, want):
  done = command(*(a.format(tmp=tmp_path) for a in arguments))
  assert done.returncode == 2, done.stderr
  assert want in done.stderr
  assert len(done.stderr.strip().splitlines()) == 1


def test_the_command_writes_where_it_is_told(tmp_path):
  workdir = lines_to(tmp_path / "run", [{"step": 1, "reward/total": 1.0}])
  done = command(f"--workdir={workdir}", f"--out={tmp_path}/page.html")
  assert (done.returncode, done.stdout) == (0, f"{tmp_path}/page.html\n")
  assert (tmp_path / "page.html").read_text().startswith("<!doctype html>")
  assert not (workdir / "report.html").exists()


@pytest.mark.parametrize(
  "name",
  [
    *("config.json", "samples/zero/eval_heldout_000060.jsonl"),
    *("checkpoints/base/settings.json", "data/cold_data/dropped.jsonl"),
  ],
)
def test_a_damaged_file_is_named(tmp_path, name):
  stages = ("base", "zero", "cold_data", "cold")
  workdir = run_directory.recipe(tmp_path / "run", stages)
  (workdir / name).write_text('{"step"')
  with pytest.raises(InputError, match=name):
    report.write_report(workdir)


def command(*arguments):
  return subprocess.run(
    [sys.executable, "-m", "r1jax.report", *arguments],
    check=False,
    capture_output=True,
    text=True,
    timeout=120,
  )


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
  if browser.path() is None:
    reason = f"none of {', '.join(browser.NAMES)} is installed"
    if "CI" in os.environ:
      pytest.fail(reason)
    pytest.skip(reason)
  with browser.Browser(tmp_path_factory.mktemp("profile")) as b:
    yield b


@pytest.fixture(scope="module")
def attacked_page(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("runs") / "quickstart"
  run_directory.make(workdir, attack=True, parts=("accuracy", "format", "</script><b>"))
  return report.write_report(workdir)


@pytest.fixture(scope="module")
def attacked_recipe(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("runs") / "recipe"
  return report.write_report(run_directory.recipe(workdir, attack=True))


SIZES = """[...document.querySelectorAll(".plot path.line, .plot path.area")]
  .filter(path => !path.closest("details"))
  .map(path => path.getBoundingClientRect()).map(box => [box.width, box.height])"""
TOO_WIDE = """[...document.querySelectorAll("body *")]
  .filter(e => !e.closest(".wide") && e.getBoundingClientRect().right > innerWidth + 1)
  .map(e => e.outerHTML.slice(0, 120))"""


@pytest.mark.browser
@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [360, 390, 1200])
def test_it_renders_without_errors_requests_or_overflow(
  chromium, attacked_page, width, dark
):
  url = attacked_page.as_uri()
  chromium.open(url, width=width, dark=dark)
  sizes = chromium.run(SIZES)
  assert len(sizes) >= 20
  assert all(w > 100 for w, _ in sizes)
  assert sum(h > 10 for _, h in sizes) >= 15
  assert chromium.run("document.documentElement.scrollWidth") == width
  assert chromium.run(TOO_WIDE) == []
  assert chromium.named("Runtime.exceptionThrown") == []
  assert chromium.named("Runtime.consoleAPICalled") == []
  assert chromium.named("Log.entryAdded") == []
  requests = [e["request"]["url"] for e in chromium.named("Network.requestWillBeSent")]
  assert set(requests) - {"data:,"} == {url}
  colour = chromium.run("getComputedStyle(document.body).backgroundColor")
  assert (int(re.search(r"\d+", colour).group()) < 80) == dark


@pytest.mark.browser
@pytest.mark.parametrize(("width", "dark"), [(390, True), (1200, False)])
def test_a_recipe_renders_and_its_drawing_scrolls(
  chromium, attacked_recipe, width, dark
):
  chromium.open(attacked_recipe.as_uri(), width=width, dark=dark)
  chromium.run("""new Promise(done => {
    addEventListener('hashchange', () => done(1)); location.hash = '#stage-2' })""")
  assert chromium.run("document.documentElement.scrollWidth") == width
  assert chromium.run(TOO_WIDE) == []
  for event in ("Runtime.exceptionThrown", "Log.entryAdded"):
    assert chromium.named(event) == []
  assert chromium.named("Page.javascriptDialogOpening") == []
  assert chromium.run("document.querySelectorAll('img, b > b').length") == 0
  assert chromium.run("document.querySelector('#stage-2 details').open")
  drawn = chromium.run("""(svg => [svg.getBoundingClientRect().width,
    svg.closest('.wide').clientWidth])(document.querySelector('svg.lineage'))""")
  assert (drawn[0] > drawn[1]) == (width < 600)
  outside = """[...document.querySelectorAll('svg.lineage g')].filter(g => {
    const box = g.querySelector('rect').getBoundingClientRect();
    return [...g.querySelectorAll('text')].some(
      t => t.getBoundingClientRect().right > box.right - 4)}).length"""
  assert chromium.run(outside) == 0, "a text is wider than its box"


@pytest.mark.browser
def test_text_of_a_model_is_inert(chromium, attacked_page):
  chromium.open(attacked_page.as_uri(), width=800)
  assert chromium.named("Page.javascriptDialogOpening") == []
  assert chromium.run("document.querySelectorAll('img, b > b').length") == 0
  scripts = chromium.run("document.querySelectorAll('script:not([type])').length")
  assert scripts == 1
  shown = "[...document.querySelectorAll('.think')].map(e => e.innerText).join()"
  assert run_directory.ATTACK in chromium.run(shown)
  names = "[...document.querySelectorAll('.legend li')].map(e => e.innerText).join()"
  assert "</script><b>" in chromium.run(names)
  config = "document.querySelector('.config').textContent"
  assert run_directory.ATTACK in chromium.run(config)


@pytest.mark.browser
def test_values_are_shown_under_the_pointer(chromium, attacked_page):
  chromium.open(attacked_page.as_uri(), width=1200)
  box = chromium.run(
    "(b => [b.left, b.top, b.width, b.height])"
    "(document.querySelector('.plot').getBoundingClientRect())"
  )
  x, y = box[0] + box[2], box[1] + box[3] / 2
  chromium.call("Input.dispatchMouseEvent", type="mouseMoved", x=x - 1, y=y)
  tip = chromium.run("document.querySelector('.tip').innerText")
  line = metrics.read(attacked_page.parent)[-1]
  accuracy, low, high = (
    f"{100 * line[f'eval/heldout/accuracy{part}']:.4g}"
    for part in ("", "_low", "_high")
  )
  assert tip == f"step 300\n{accuracy} % ({low} to {high} %)"
  chromium.call("Input.dispatchMouseEvent", type="mouseMoved", x=5, y=5)
  assert chromium.run("document.querySelectorAll('.tip').length") == 0


@pytest.mark.browser
def test_it_reads_without_script_and_prints(chromium, attacked_page):
  """Curves, numbers and problems are in the page itself."""
  chromium.call("Emulation.setScriptExecutionDisabled", value=True)
  try:
    chromium.open(attacked_page.as_uri(), width=800)
  finally:
    chromium.call("Emulation.setScriptExecutionDisabled", value=False)
  assert len(chromium.run(SIZES)) >= 20
  assert chromium.run("document.querySelector('svg title').textContent").startswith(
    "Held-out accuracy, steps 0 to 300: heldout from 31.5"
  )
  pdf = chromium.call("Page.printToPDF")["data"]
  assert len(pdf) > 50_000
