"""The page in a real browser: headless Chromium, from a file, without a network."""

import shutil
from dataclasses import replace

import pytest
from testkit.pages import contrasted, dumped, entry_of, many_kinds

import segrl
from segrl import toy
from segrl.commands.cli import main
from segrl.importance.misleading import Suspect
from segrl.report import curves_of, load_rollouts, page

pytestmark = pytest.mark.e2e
MARKED = "return [...document.querySelectorAll('.segment')].map((one) => one.querySelector('mark') !== null)"
DROPPED = "return [...document.querySelectorAll('.segment')].map((one) => one.matches('.dropped'))"
KINDS = (
    "return [...document.querySelectorAll('.segment')].map("
    "(one) => [...new Set([...one.querySelectorAll('mark')].map((mark) => mark.className))])"
)
REASONS = (
    "return [...document.querySelectorAll('.segment .note')].map("
    "(one) => [...one.querySelectorAll('dt')].find((name) => name.textContent === 'reason').nextSibling.textContent)"
)


@pytest.fixture(scope="module")
def browser():
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    chromium, driver = shutil.which("chromium") or shutil.which("google-chrome"), shutil.which("chromedriver")
    if not (chromium and driver):
        pytest.skip("no Chromium with its chromedriver here: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in ("headless=new", "no-sandbox", "disable-dev-shm-usage", "disable-gpu", "window-size=1400,900"):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    found = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield found
    found.quit()


@pytest.fixture(scope="module")
def entries():
    return many_kinds()


@pytest.fixture
def opened(browser, entries, tmp_path):
    """A fresh page of the four traces; whatever the test did, the console stayed silent."""
    file = tmp_path / "report.html"
    file.write_text(page(entries), encoding="utf-8")
    browser.get(file.as_uri())
    yield browser
    assert browser.get_log("browser") == []


def run(browser, script, *arguments):
    """The script, then what two frames later is on the page."""
    return browser.execute_async_script(
        f"const done = arguments[arguments.length - 1]; const act = function () {{ {script} }};"
        "const found = act.apply(null, arguments);"
        "requestAnimationFrame(() => requestAnimationFrame(() => done(found)))",
        *arguments,
    )


def change(browser, name, value, event="change"):
    run(
        browser,
        "const control = document.getElementById(arguments[0]); control.value = arguments[1];"
        "control.dispatchEvent(new Event(arguments[2]))",
        name,
        value,
        event,
    )


def names(browser):
    return run(browser, "return [...document.querySelectorAll('#list .name')].map((one) => one.textContent)")


def test_what_a_user_wrote_is_text(opened, entries):
    for i, entry in enumerate(entries):
        run(opened, "open(arguments[0])", i)
        shown = run(opened, "return [...document.querySelectorAll('.segment .text')].map((one) => one.textContent)")
        cut = [entry.trace.offsets_T[b, 0] for b in entry.segments.boundaries[:-1]] + [len(entry.trace.response)]
        pieces = [entry.trace.response[a:b] for a, b in zip(cut, cut[1:], strict=False)]
        assert [one.strip() for one in shown] == [one.strip() for one in pieces]
    assert run(opened, "return document.querySelectorAll('main img, main script').length") == 0
    assert run(opened, "return window.stolen === undefined")


@pytest.mark.parametrize("measure", [0, 1])
def test_the_sliders_select_as_the_library_does(opened, entries, measure):
    change(opened, "measure", measure)
    for i, entry in enumerate(entries):
        run(opened, "open(arguments[0])", i)
        for tau, beta in ((0.3, 1.0), (0.9, 0.4), (1.0, 0.0)):
            change(opened, "tau", tau, "input")
            change(opened, "beta", beta, "input")
            scores = list(entry.views.values())[measure].scores
            assert run(opened, REASONS)[:-1] == list(segrl.select(scores, tau, beta).reason_S)[:-1]
            assert run(opened, DROPPED) == [not kept for kept in segrl.select(scores, tau, beta).keep_S.tolist()]
        run(opened, "document.getElementById('saved').click()")
        assert run(opened, REASONS)[:-1] == list(list(entry.views.values())[measure].selection.reason_S)[:-1]


def test_a_token_measure_dims_tokens(opened, entries):
    change(opened, "measure", 2)
    change(opened, "tau", 0.5, "input")
    scores = entries[0].views["tokens"].scores
    words = run(opened, "return document.querySelector('.head').textContent")
    thinking = scores.thought_S
    kept = int(segrl.select(scores, 0.5).keep_S[thinking].sum())
    assert f"{kept} of {int(thinking.sum())} thinking tokens" in words
    assert run(opened, "return document.querySelectorAll('.segment .out').length") > 0


def test_a_focused_segment_says_its_numbers(opened, entries):
    scores = entries[0].views["ig"].scores
    style = (
        "const one = document.querySelectorAll('.segment')[1]; if (arguments[0]) one.focus();"
        "return [getComputedStyle(one.querySelector('.note')).visibility, one.querySelector('.note').textContent]"
    )
    assert run(opened, style, False)[0] == "hidden"
    visible, note = run(opened, style, True)
    assert visible == "visible"
    rank = 1 + sum(float(one) > float(scores.strength_S[1]) for one in scores.strength_S)
    for words in (f"rank{rank} of 3", f"share{float(scores.share_S[1]):.0%}", "consistency", "reason", "tokens"):
        assert words in note


def test_traces_are_filtered_sorted_and_searched(opened):
    assert names(opened) == ["hostile<b>", "chinese", "arabic", "wrong"]
    change(opened, "filter", "wrong")
    assert names(opened) == ["wrong"]
    change(opened, "filter", "low")
    assert names(opened) == ["wrong"]
    change(opened, "filter", "all")
    change(opened, "sort", "low")
    assert names(opened)[0] == "wrong"
    change(opened, "sort", "long")
    assert names(opened)[0] == "chinese"
    change(opened, "search", "النتيجة", "input")
    assert names(opened) == ["arabic"]


def test_an_address_opens_its_trace(browser, entries, tmp_path):
    file = tmp_path / "report.html"
    file.write_text(page(entries), encoding="utf-8")
    for address, title in (("#arabic", "✓ arabic"), ("#hostile%3Cb%3E", "✓ hostile<b>"), ("#%E0%A4%A", "✓ hostile<b>")):
        browser.get("about:blank")
        browser.get(file.as_uri() + address)
        assert run(browser, "return document.querySelector('.head h2').textContent") == title


def test_light_and_dark(opened):
    ground = "return getComputedStyle(document.body).backgroundColor"
    found = {}
    for _ in range(3):
        run(opened, "document.getElementById('theme').click()")
        found[run(opened, "return document.documentElement.dataset.theme")] = run(opened, ground)
    assert len(set(found.values())) == 2


def test_tokens_are_drawn_when_they_are_looked_at(browser, tmp_path):
    pieces = [f"Wait {i} " + "so it goes " * 60 for i in range(60)]
    file = tmp_path / "long.html"
    file.write_text(page([entry_of([*pieces, "end"], id="long", graded=False)]), encoding="utf-8")
    browser.get(file.as_uri())
    marked = run(browser, MARKED)
    assert marked[0]
    assert not any(marked[30:])
    run(browser, "document.querySelectorAll('.strip i')[50].click()")
    assert run(browser, MARKED)[50]
    assert run(browser, "return document.activeElement.dataset.segment") == "50"


def test_rollouts_step_by_step_for_one_prompt(browser, tmp_path):
    """Weights and advantages on tokens; the prompt's own rollouts by step."""
    file = tmp_path / "rollouts.html"
    file.write_text(page([*many_kinds(), *load_rollouts(dumped(tmp_path / "dump"))]), encoding="utf-8")
    browser.get(file.as_uri() + "#step%202%2C%200_0%20of%20a")
    note = "return document.querySelectorAll('.segment')[arguments[0]].querySelector('.note').textContent"
    for s, weight, advantage in ((0, "1", "0.5"), (1, "1.2", "0.6"), (2, "0.8", "0.4"), (3, "1", "0.5")):
        assert f"weight{weight}advantage{advantage}tokens" in run(browser, note, s)
    assert run(browser, "return document.getElementById('tint').value") == "weight"
    assert run(browser, REASONS)[:3] == ["strength", "strength", "forced"]
    assert run(browser, KINDS) == [[], ["p5"], ["n5"], []]
    change(browser, "tint", "advantage")
    assert run(browser, KINDS) == [["p4"], ["p5"], ["p3"], ["p4"]]
    head = run(browser, "return document.querySelector('.head').textContent")
    for words in ("reward 1", "step 2", "advantage +0.5", "weights 0.8 to 1.2"):
        assert words in head
    prompts = run(browser, "return [...document.querySelectorAll('#problem option')].map((one) => one.textContent)")
    problem = prompts.index("What is 5 + 7?") - 1
    assert len(prompts) == 1 + 4 + 2
    change(browser, "problem", problem)
    assert names(browser) == ["step 1, 0_0 of a", "step 1, 1_0 of a", "step 2, 0_0 of a"]
    change(browser, "filter", "wrong")
    assert names(browser) == ["step 1, 1_0 of a"]
    run(browser, "document.querySelector('#list button').click()")
    head = run(browser, "return document.querySelector('.head').textContent")
    assert "weights all one: other sign" in head
    assert browser.get_log("browser") == []


# --- two responses to one problem, the thought that misled, a run ----------------------------------------------------


def keyed(browser, key):
    run(browser, "document.body.dispatchEvent(new KeyboardEvent('keydown', {key: arguments[0], bubbles: true}))", key)


FOCUSED = (
    "const one = document.activeElement; const pane = one.closest('.pane');"
    "return pane && [pane.dataset.pane, one.dataset.segment]"
)
TITLES = "return [...document.querySelectorAll('.head h2')].map((one) => one.textContent)"


def shown(browser, entries, tmp_path, **options):
    file = tmp_path / "page.html"
    file.write_text(page(entries, **options), encoding="utf-8")
    browser.get("about:blank")
    browser.get(file.as_uri())
    return file.as_uri()


def test_a_right_response_beside_a_wrong_one(browser, tmp_path):
    """Each column scrolls by itself; a key brings the thoughts of one number side by side."""
    long = [f"Wait {i} " + "so it goes " * 20 for i in range(40)]
    right, wrong = ([*long, f"</think> \\boxed{{{x}}}"] for x in (12, 13))
    other = entry_of(["a", "b"], id="other", problem_id="q")
    same = [entry_of(pieces, id=f"<i>{i}", problem_id="p") for i, pieces in enumerate((right, right, wrong))]
    address = shown(browser, [other, *same], tmp_path)
    assert run(browser, "return document.getElementById('beside').parentElement.hidden")
    keyed(browser, "n")
    keyed(browser, "b")
    assert run(browser, TITLES) == ["✓ <i>0", "✗ <i>2"]  # the one that ended otherwise
    tops = "return [...document.querySelectorAll('.pane')].map((one) => one.scrollTop)"
    run(browser, "document.querySelectorAll('.pane')[1].scrollTop = 500")
    assert run(browser, tops) == [0, 500]
    for _ in range(3):
        keyed(browser, "j")
    assert run(browser, FOCUSED) == ["0", "2"]
    third = "return [...document.querySelectorAll('.segment[data-segment=\"2\"]')]"
    heights = f"{third}.map((one) => Math.round(one.getBoundingClientRect().top))"
    left, beside = run(browser, heights)
    assert left == beside
    keyed(browser, "l")
    assert run(browser, FOCUSED) == ["1", "2"]
    ids = "return [...document.querySelectorAll('[id]')].map((one) => one.id)"
    assert len(set(run(browser, ids))) == len(run(browser, ids))
    change(browser, "beside", "2")
    assert run(browser, TITLES) == ["✓ <i>0", "✓ <i>1"]
    browser.get("about:blank")
    browser.get(f"{address}#%3Ci%3E2&%3Ci%3E1")
    assert run(browser, TITLES) == ["✗ <i>2", "✓ <i>1"]
    sides = "return [...document.querySelectorAll('.pane')].map((one) => one.getBoundingClientRect().left)"
    browser.set_window_size(500, 900)
    assert len(set(run(browser, sides))) == 1
    browser.set_window_size(1400, 900)
    assert len(set(run(browser, sides))) == 2
    keyed(browser, "b")
    assert len(run(browser, TITLES)) == 1
    assert browser.get_log("browser") == []


ROWS = (
    "return ['misleading', 'untested'].map("
    "(kind) => [...document.querySelectorAll(`.segment.${kind}`)].map((one) => Number(one.dataset.segment)))"
)
BUTTONS = "return [...document.querySelectorAll('.head button')].map((one) => one.textContent)"
HEAD = "return document.querySelector('.head').textContent"


def test_what_was_tested_is_marked_and_jumped_to_and_nothing_else_is_called_misleading(browser, tmp_path):
    """The second thought speaks most for the wrong answer; the test suspects the third."""
    pieces, scores_S = ["a b", "c d", "e f"], [0.5, 2.0, -1.0, 0.0]
    wrong, right = (contrasted([*pieces, f"</think> \\boxed{{{x}}}"], scores_S) for x in (13, 12))
    suspect = Suspect(2, score=0.9, reached=0.6, concludes=False)
    none = (None, [[], []], [])
    cases = [
        (wrong._replace(suspect=suspect), (["0", "2"], [[2], []], ["misleading thought: segment 3"])),
        (wrong._replace(suspect=suspect._replace(score=0.6)), none),
        (wrong._replace(suspect=suspect._replace(concludes=True)), none),
        (wrong, (["0", "1"], [[], [1]], ["speaks most for the wrong answer: segment 2"])),
        (contrasted([*pieces, "</think> \\boxed{13}"], [-0.5, -2.0, -1.0, 0.0]), none),
        (right, none),
        (wrong._replace(verdict=replace(wrong.verdict, status="timeout")), none),
    ]
    shown(browser, [entry for entry, _ in cases], tmp_path)
    heads, colours = [], []
    for i, (_, expected) in enumerate(cases):
        run(browser, "open(arguments[0]); document.activeElement.blur()", i)
        change(browser, "measure", "1")
        keyed(browser, "m")
        assert (run(browser, FOCUSED), run(browser, ROWS), run(browser, BUTTONS)) == expected
        heads.append(run(browser, HEAD))
        bar = "document.querySelector('.track i:not([hidden])')"
        colours.append(run(browser, f"return getComputedStyle({bar} ?? document.body).backgroundColor"))
    assert ["misleading thought none marked" in head for head in heads] == [False, True, True, *[False] * 4]
    words = ["wrong (numeric)"] * 5 + ["right (exact)", "undecided (timeout)"]
    assert [word for word, head in zip(words, heads, strict=True) if word not in head] == []
    assert colours[0] == colours[3] != colours[5]
    run(browser, "open(0); document.querySelector('.head button').click()")
    assert run(browser, FOCUSED) == ["0", "2"]
    # Beside the measure that is shown, the others' scores: of thoughts alone.
    change(browser, "measure", "0")
    cells = "return [...document.querySelectorAll('.segment')].map((one) => one.querySelector('.cell').textContent)"
    assert run(browser, cells) == ["+0.50", "+2.00", "\u22121.00", ""]
    assert "mistake+2" in run(browser, "return document.querySelectorAll('.segment .note')[1].textContent")
    # Beside the score that is shown, its parts before the others' scores.
    change(browser, "measure", "1")
    assert run(browser, cells) == ["+1.00", "+4.00", "\u22122.00", ""]
    assert "lost without+4" in run(browser, "return document.querySelectorAll('.segment .note')[1].textContent")


@pytest.mark.parametrize(("ask", "number", "marks"), [("all", 1, 1), ("last", 0, 0)])
def test_the_page_of_explain_has_the_terminals_mark(browser, tmp_path, capsys, monkeypatch, ask, number, marks):
    monkeypatch.setenv("COLUMNS", "400")
    wrong = toy.sample_mistakes(number + 1, seed=0, ask=ask)[number]
    (tmp_path / "r.txt").write_text(wrong.response)
    given = [f"problem={wrong.problem}", f"answer={wrong.answer}", f"response={tmp_path / 'r.txt'}"]
    assert main(["explain", *given, f"page={tmp_path / 'o.html'}"]) == 0
    misled = [int(line.split()[1]) - 1 for line in capsys.readouterr().out.splitlines() if " misled   " in line]
    assert len(misled) == marks
    browser.get((tmp_path / "o.html").as_uri())
    assert run(browser, ROWS) == [misled, []]
    assert len(run(browser, BUTTONS)) == marks
    keyed(browser, "m")
    assert run(browser, FOCUSED) == (["0", str(misled[0])] if misled else None)


def test_the_runs_curves_are_read_by_key_and_pointer_and_as_a_table(browser, tmp_path):
    rollouts = sorted(load_rollouts(dumped(tmp_path / "dump")), key=lambda rollout: rollout.credit.uniform is None)
    metrics = {step: {"actor/entropy": value} for step, value in ((1, 0.5), (2, 0.25), (3, 0.125))}
    shown(browser, rollouts, tmp_path, curves=curves_of(rollouts, metrics))
    opened = run(browser, "return Number(document.querySelector('#list [aria-current=true]').dataset.trace)")
    assert opened == sum(rollout.credit.uniform is not None for rollout in rollouts) > 0  # the first that was weighed
    readouts = "return [...document.querySelectorAll('#charts output')].map((one) => one.textContent)"
    assert run(browser, readouts) == ["step 3: none", "step 3: 0.125"]
    key = "document.querySelectorAll('.plot')[1].dispatchEvent(new KeyboardEvent('keydown', {key: 'ArrowLeft'}))"
    run(browser, key)
    assert run(browser, readouts) == ["step 2: 1", "step 2: 0.25"]
    run(
        browser,
        "const plot = document.querySelector('.plot');"
        "plot.dispatchEvent(new PointerEvent('pointermove', {clientX: plot.getBoundingClientRect().left + 2}))",
    )
    assert run(browser, readouts) == ["step 1: 0.333", "step 1: 0.5"]
    said = "return document.querySelector('.plot').getAttribute('aria-valuetext')"
    assert run(browser, said) == "step 1: 0.333"
    cells = "[...row.cells].map((cell) => cell.textContent)"
    table = f"return [...document.querySelector('#charts table').rows].map((row) => {cells})"
    assert run(browser, table)[:2] == [["step", "reward", "entropy"], ["1", "0.333", "0.5"]]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    seen = run(browser, "return document.querySelector('#charts table').offsetHeight")
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
    assert seen > 40
    assert browser.get_log("browser") == []
