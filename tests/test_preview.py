"""One text under several masks: what is read off the layer, and how it is shown."""

import http.client
import io
import itertools
import json
import pathlib
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from keras.optimizers.schedules import LearningRateSchedule
from matplotlib.figure import Figure
from rich.console import Console

from keras_dynmask import preview, text
from keras_dynmask.masking import DynamicMasking
from keras_dynmask.picture import picture
from keras_dynmask.preview import HIDDEN, KEPT, SWAPPED, UNTOUCHED
from keras_dynmask.rates import written_rate

CHROMEDRIVER = shutil.which("chromedriver")
SENTENCE = "one two three four five six seven eight nine ten ."
SENTENCES = [SENTENCE, "a b c d e f g h i j k l m n o p q r s t"]


def lines_of(sentences=(SENTENCE,), steps=6, splitter=None, rate=0.3, **arguments):
    splitter = splitter or preview.Words(sentences)
    arguments = {"mask_selection_rate": rate, "seed": 1, **arguments}
    masking = preview.masking_of(splitter, **arguments)
    return preview.preview(masking, splitter, sentences, steps)


def words_of(line):
    return [word for word, _ in line.tokens]


def selected(line):
    return [i for i, (_, fate) in enumerate(line.tokens) if fate is not UNTOUCHED]


def printed(lines, **options):
    console = Console(file=io.StringIO(), highlight=False, **options)
    preview.show(lines, console)
    return console.file.getvalue()


@pytest.fixture(scope="module")
def pieces():
    documents = ["the cats and the dogs walked and talked"] * 20
    return preview.Pieces(text.train_tokenizer(documents, 40))


def test_lines_show_what_the_layer_gives():
    splitter = preview.Words([SENTENCE])
    masking = preview.masking_of(splitter, mask_selection_rate=0.5, seed=3)
    ids = np.array(splitter.encode(SENTENCE), "int32")
    fates = set()
    for step, line in enumerate(preview.preview(masking, splitter, [SENTENCE], 20)):
        masked = {name: value.numpy() for name, value in masking(ids, step=step).items()}
        assert line.title == f"step {step}"
        assert selected(line) == np.flatnonzero(masked["mask_weights"]).tolist()
        for (word, fate), seen, original in zip(line.tokens, masked["token_ids"], ids, strict=True):
            token = splitter.tokens[seen]
            assert word == {HIDDEN: "[MASK]", SWAPPED: f"*{token}*", KEPT: f"_{token}_"}.get(
                fate, token
            )
            assert (seen == original) == (fate in (KEPT, UNTOUCHED))
            fates.add(fate)
    assert len(fates) == 4


@pytest.mark.parametrize("capacity", [2, 5, 40])
def test_targets_of_fixed_size_are_shown_as_dense_ones(capacity):
    for line in lines_of(mask_selection_length=capacity, rate=1.0):
        count = min(capacity, 11)
        assert len(selected(line)) == count
        assert line.tally.startswith(f"{count} of 11, ")
    enough = lines_of(mask_selection_length=40)
    assert enough == lines_of()


def test_the_tally_counts_what_is_selectable():
    assert [line.tally for line in lines_of(rate=0.0)] == ["0 of 11, 0%"] * 6
    protected = lines_of(
        unselectable_token_ids=preview.Words([SENTENCE]).encode(SENTENCE), random_token_rate=0.0
    )
    assert protected[0].tally == "0 of 0, 0%"


def test_documents_are_packed_and_counted():
    for line in lines_of(SENTENCES, rate=0.5, count_per_document=True):
        assert words_of(line)[11] == words_of(line)[-1] == text.SEPARATOR
        assert re.fullmatch(r"[56]\+10 of 11\+20, 5[02]%|[56]\+10 of 11\+20, 48%", line.tally)
        first = sum(i < 11 for i in selected(line))
        assert line.tally.startswith(f"{first}+{len(selected(line)) - first} of")
    together = {line.tally for line in lines_of(SENTENCES, rate=0.5)}
    assert len(together) > 2  # without it the documents share one count


def test_weights_are_shown_unless_they_are_1():
    (line,) = lines_of(steps=1, rate=2 / 11, inverse_rate_weights=True)
    assert line.tally == "2 of 11, 18%, weight 5.5"
    (line,) = lines_of(
        SENTENCES, 1, rate=0.2, inverse_rate_weights=True, count_per_document=True, seed=2
    )
    assert re.search(r"weight 5 or |or 5$|weight 5$", line.tally)
    assert "weight" not in lines_of(rate=1.0, inverse_rate_weights=True)[0].tally


def test_an_evaluation_rate_adds_the_fixed_mask():
    *steps, last = lines_of(rate=0.0, evaluation_rate=1.0)
    assert [line.tally for line in steps] == ["0 of 11, 0%"] * 6
    assert (last.title, last.tally) == ("evaluate", "11 of 11, 100%")
    capped = lines_of(rate=0.0, evaluation_rate=1.0, mask_selection_length=3)[-1]
    assert capped.tally.startswith("3 of 11")


def test_units_are_corrupted_as_a_whole():
    splitter = preview.Words([SENTENCE])
    unit = {"continuation_token_ids": splitter.encode(SENTENCE)[1:], "rate": 1.0}
    fates = [
        {fate for _, fate in line.tokens}
        for line in lines_of(steps=30, corrupt_whole_units=True, **unit)
    ]
    assert all(len(of_line) == 1 for of_line in fates) and len(set.union(*fates)) == 3
    assert any(len({fate for _, fate in line.tokens}) > 1 for line in lines_of(**unit))


def test_pieces_are_glued_where_they_are_untouched(pieces):
    assert pieces.tokens[pieces.ids["[MASK]"]] == "[MASK]"
    assert any(token.startswith("##") for token in pieces.tokens)
    sentence = "the cads walked"
    shown = printed(lines_of([sentence], 1, pieces, rate=0.0)).splitlines()[0]
    assert shown.startswith(f"step 0 {sentence}  0 of ")
    marked = printed(
        lines_of([sentence], 1, pieces, rate=1.0, mask_token_rate=0.0, random_token_rate=0.0)
    )
    assert re.search(r" _##\w+_ ", marked)


def test_words_keep_the_words_of_every_sentence():
    words = preview.Words(["Grüße, Welt", "x_1 {0}"])
    assert [words.tokens[i] for i in words.encode("Grüße, x_1 { 0")] == [
        "Grüße", ",", "x_1", "{", "0",
    ]  # fmt: skip
    assert words.tokens[:4] == list(text.SPECIAL_TOKENS)


def test_sentences_must_hold_words():
    with pytest.raises(ValueError, match=r"`sentence` must hold a word. Received: sentences=\['a"):
        lines_of(["a", " "])


def test_rates_are_numbers_pairs_and_schedules():
    assert written_rate("--rate", "0.15", 5) == 0.15
    assert written_rate("--rate", "0.1,0.5", 5) == (0.1, 0.5)
    schedule = written_rate("--rate", "0.3:0.1", 5)
    assert isinstance(schedule, LearningRateSchedule)
    np.testing.assert_allclose([schedule(step) for step in range(5)], [0.3, 0.25, 0.2, 0.15, 0.1])
    assert float(written_rate("--rate", "0.3:0.1", 1)(0)) == pytest.approx(0.3)
    counts = [len(selected(line)) for line in lines_of(rate=written_rate("--rate", "1:0", 6))]
    assert counts[0] == 11 and counts[-1] == 0 and counts == sorted(counts, reverse=True)


@pytest.mark.parametrize("rate", ["", "x", "1.5", "-1", "nan", "0.1,0.2,0.3", "0.1:x", "0.1 0.2"])
def test_other_rates_are_refused(rate):
    with pytest.raises(ValueError, match=r"LOW,HIGH or FIRST:LAST\. Received: --rate='"):
        written_rate("--rate", rate, 5)


def test_every_argument_can_be_set():
    config = DynamicMasking(9, 0.1, 3).get_config()
    layer = {"name", "trainable", "dtype", "vocabulary_size"}
    assert set(preview.DIALS) == set(config) - layer
    words = preview.Words([SENTENCE])
    masking = preview.masking_of(words, **preview.settings_of(
        ["mask_selection_rate=[0, 1]", "mask_selection_length=null", "at_least_one=true",
         "seed=1", "seed=2"], words,
    ))  # fmt: skip
    assert masking.mask_selection_rate == (0.0, 1.0) and masking.mask_selection_length is None
    assert masking.at_least_one is True and masking.seed == 2


def test_tokens_stand_for_ids():
    words = preview.Words([SENTENCE])
    one, two = words.ids["one"], words.ids["two"]
    settings = preview.settings_of(
        ['unselectable_token_ids=["one", 7, "two"]', 'random_words=[["two", "one"]]',
         'mask_token_id="one"', 'selection_weights={"one": 9, "two": 0}'], words,
    )  # fmt: skip
    assert settings["unselectable_token_ids"] == [one, 7, two]
    assert settings["random_words"] == [[two, one]] and settings["mask_token_id"] == one
    weights = np.array(settings["selection_weights"])
    assert len(weights) == len(words.tokens) and weights[one] == 9 and weights[two] == 0
    assert (np.delete(weights, [one, two]) == 1).all()
    lines = lines_of(selection_weights=np.where(np.arange(len(weights)) == one, 1e6, 1))
    assert all(0 in selected(line) for line in lines)


@pytest.mark.parametrize(
    "assignment, message",
    [
        ("rate=1", r"must name one of: mask_selection_rate, .*, seed\. Received: NAME='rate'"),
        ("vocabulary_size=9", r"Received: NAME='vocabulary_size'"),
        ("=1", r"Received: NAME=''"),
        ("seed", r"`--set seed` must be JSON: .* Received: $"),
        ("seed=one", r"`--set seed` must be JSON: .* Received: one"),
        ('selection_weights={"qwertz": 1}', r"tokens of the vocabulary.*unknown=\['qwertz'\]"),
        ('unselectable_token_ids=["qwertz"]', r"list of ids .*Received: .*'qwertz'"),
        ("mask_selection_rate=2", r"Received: mask_selection_rate=2"),
        ('evaluation_rate={"class_name": "A", "config": {}}', r"`DynamicMasking` takes\. "),
    ],
)
def test_settings_are_refused_by_name(assignment, message):
    words = preview.Words([SENTENCE])
    with pytest.raises(ValueError, match=message):
        preview.masking_of(
            words, **{"mask_selection_rate": 0.1, **preview.settings_of([assignment], words)}
        )


def test_marks_say_what_colours_say():
    lines = lines_of(steps=20)
    plain = printed(lines, width=40)
    assert "\x1b" not in plain and len(plain.splitlines()) == 22  # nobody looks: nothing is cut
    assert plain.splitlines()[-1] == (
        "[MASK] hidden   *word* swapped for another   _word_ kept, and predicted too"
    )
    for mark in (r"\[MASK\]", r"\*\w+\*", r" _\w+_"):
        assert re.search(mark, plain.split("hidden")[0])
    coloured = printed(lines, width=40, force_terminal=True, color_system="standard")
    for code in ("1;31m[MASK]", "1;33m*", "1;32m_"):
        assert code in coloured
    assert len(coloured.splitlines()) > 22


def page_of(lines, tmp_path):
    path = tmp_path / "page.html"
    preview.write(lines, path)
    return path.read_text(encoding="utf-8")


def test_a_page_stands_alone_and_has_colours_whoever_looks(tmp_path, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "dumb")
    page = page_of(lines_of(["<b>bold</b> & 日本 {x} [red]y[/red]"], 30), tmp_path)
    assert page.startswith("<!DOCTYPE html>") and page.rstrip().endswith("</html>")
    assert "color-scheme" in page and "http" not in page and " src=" not in page
    assert "&lt;" in page and "&amp;" in page and "日本" in page and "<b>" not in page
    shown = {}
    for style, marked in re.findall(r'<span class="(r\d)">(\[MASK\]|[*_]\w+[*_])</span>', page):
        shown.setdefault(marked[0], set()).add(style)
    assert len(shown) == 3 and all(len(styles) == 1 for styles in shown.values())
    assert re.search(r"\d+ of 21, \d+%", page) and "step 29" in page


@pytest.mark.parametrize("name", ["FORCE_COLOR", "TTY_COMPATIBLE"])
def test_a_line_of_a_page_is_a_mask_whatever_the_terminal(name, tmp_path, monkeypatch):
    monkeypatch.setenv(name, "1")
    monkeypatch.setenv("COLUMNS", "20")
    page = page_of(lines_of([SENTENCE * 5], 3), tmp_path)
    lines = re.search("<pre.*?>(.*)</pre>", page, re.DOTALL)[1].splitlines()
    assert len(lines) == 3 + 2 and all("step" in line for line in lines[:3])


class Browser:
    """A headless Chromium with one page, driven as W3C's WebDriver says."""

    def __init__(self, driver, profile, page):
        started = (re.search(r"success.* on port (\d+)", line) for line in driver.stdout)
        self.connection = http.client.HTTPConnection(
            "127.0.0.1", int(next(filter(None, started))[1]), timeout=120
        )
        self.session = "/session"
        switches = ["--headless", "--no-sandbox", "--disable-background-networking"]
        options = {"args": [*switches, f"--user-data-dir={profile}"]}
        capabilities = {"alwaysMatch": {"goog:chromeOptions": options}}
        self.session += "/" + self.ask("POST", capabilities=capabilities)["sessionId"]
        self.ask("POST", "/url", url=page.as_uri())

    def ask(self, method, path="", **body):
        self.connection.request(method, self.session + path, json.dumps(body) if body else None)
        answer = json.load(self.connection.getresponse())["value"]
        assert not (isinstance(answer, dict) and "error" in answer), answer
        return answer

    def press(self, *keys):
        strokes = [{"type": kind, "value": key} for key in keys for kind in ("keyDown", "keyUp")]
        self.ask("POST", "/actions", actions=[{"type": "key", "id": "", "actions": strokes}])

    def run(self, script):
        return self.ask("POST", "/execute/sync", script=script, args=[])

    def prefer(self, scheme):
        media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        self.ask("POST", "/goog/cdp/execute", cmd="Emulation.setEmulatedMedia", params=media)


@pytest.fixture
def browser(tmp_path):
    """With a page of seven masks."""
    if CHROMEDRIVER is None:
        pytest.skip("ChromeDriver is not installed.")
    page_of(lines_of(["one <b>two</b> three"], 7), tmp_path)
    command = [CHROMEDRIVER, "--port=0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as driver:
        try:
            opened = Browser(driver, tmp_path / "profile", tmp_path / "page.html")
            yield opened
            opened.ask("DELETE")
            opened.connection.close()
        finally:
            driver.terminate()


TAB, RIGHT, END, SPACE = "\ue004", "\ue014", "\ue010", " "
STEPS = "return document.querySelector('pre').textContent.match(/^step \\d+/gm)"


def test_a_page_is_read_with_the_keys_alone(browser):
    steps = [f"step {i}" for i in range(7)]
    assert browser.run(STEPS) == steps[:1]
    browser.press(RIGHT, RIGHT, RIGHT)
    assert browser.run(STEPS) == steps[3:4]
    assert browser.run("return document.activeElement.ariaValueText") == "step 3"
    browser.press(END)
    assert browser.run(STEPS) == steps[6:]
    browser.press(TAB, SPACE)
    assert browser.run(STEPS) == steps
    assert browser.run("return document.getElementById('step').disabled")
    browser.press(SPACE, TAB)
    assert browser.run(STEPS) == steps[6:]


SHOWN_COLOURS = """
const colour = (element, name) => getComputedStyle(element)[name].match(/[\\d.]+/g).map(Number);
const behind = colour(document.documentElement, "backgroundColor");
return [behind, [...document.querySelectorAll("pre, pre *, label")].map(e => colour(e, "color"))];
"""


@pytest.mark.parametrize("scheme, background", [("light", [255] * 3), ("dark", [0] * 3)])
def test_a_page_is_readable_in_light_and_dark(scheme, background, browser):
    browser.prefer(scheme)
    behind, colours = browser.run(SHOWN_COLOURS)
    assert behind == background
    assert len({tuple(colour) for colour in colours}) == 5  # untouched, dim, and three fates
    assert all(contrast(colour, behind) >= 4.5 for colour in colours)


def contrast(colour, background):
    def luminance(channels):
        linear = [
            c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4
            for c in (channel / 255 for channel in channels)
        ]
        return np.dot(linear, (0.2126, 0.7152, 0.0722)) + 0.05

    light, dark = sorted([luminance(colour), luminance(background)], reverse=True)
    return light / dark


@pytest.mark.parametrize("background", [(255, 255, 255), (0, 0, 0)])
def test_colours_of_a_page_are_readable_in_light_and_dark(background):
    assert all(contrast(colour, background) >= 4.5 for colour in preview.COLOURS)


def boxes_of(figure):
    return figure.axes[0].patches


def test_a_picture_has_a_box_per_token_and_a_legend(tmp_path):
    lines = lines_of(["a $b$ c_d"], 7, rate=0.5)
    figure = picture(lines, preview.LEGEND)
    assert isinstance(figure, Figure)
    written = [letters.get_text() for letters in figure.axes[0].texts]
    for line in lines:
        assert {line.title, line.tally, *words_of(line)} <= set(written)
    assert "swapped for another" in written and "[MASK]" in written
    assert len(boxes_of(figure)) == 7 * 5 + 3
    preview.write(lines, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("sentence, wrapped", [("a", 1), ("lorem ipsum dolor " * 20, 4)])
def test_boxes_of_a_picture_stay_apart_and_inside(sentence, wrapped):
    figure = picture(lines_of([sentence], 3), preview.LEGEND)
    width, height = (72 * side for side in figure.get_size_inches())
    extents = [box.get_path().get_extents(box.get_patch_transform()) for box in boxes_of(figure)]
    assert all(0 <= e.x0 < e.x1 <= width and 0 <= e.y0 < e.y1 <= height for e in extents)
    rows = {round(e.y0) for e in extents}
    assert len(rows) >= 3 * wrapped + 1  # and the legend
    for row in rows:
        beside = sorted((e.x0, e.x1) for e in extents if round(e.y0) == row)
        assert all(a[1] < b[0] for a, b in itertools.pairwise(beside))
    figure.canvas.draw()
    for letters in figure.axes[0].texts:
        assert letters.get_window_extent().x1 <= figure.bbox.x1


@pytest.mark.parametrize(
    "sentence, message",
    [
        ("a b c " * 1000, r"holds 300 rows .*Received: rows=\d+, letters=\d+"),
        ("a" * 500, r"rows of 360 letters at most, a page \(\.html\) more"),
        ("日本 x", r"can't show these letters.*lacking=\['日', '本'\]"),
    ],
)
def test_what_no_picture_holds_a_page_does(sentence, message, tmp_path):
    lines = lines_of([sentence], 3)
    with pytest.raises(ValueError, match=message):
        picture(lines, preview.LEGEND)
    assert sentence.split()[0] in page_of(lines, tmp_path)


@pytest.mark.parametrize("name", ["a.gif", "a", "a.html.bak", "no/such/a.png"])
def test_other_outputs_are_refused(name, tmp_path):
    with pytest.raises(ValueError, match=r"`output` must .*Received: output='.*a"):
        preview.checked_output(tmp_path / name)


@pytest.mark.slow
def test_the_picture_of_the_readme_can_be_drawn_again(tmp_path):
    program = pathlib.Path(__file__).parents[1] / "docs" / "draw_masks.py"
    copy = tmp_path / program.name
    copy.write_text(program.read_text())
    subprocess.run([sys.executable, str(copy)], check=True, capture_output=True)
    assert (tmp_path / "masks.png").read_bytes().startswith(b"\x89PNG")
