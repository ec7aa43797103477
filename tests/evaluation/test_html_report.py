"""The report as a page: what it shows is what was evaluated, and nothing in it runs but its own script."""

import base64
import io
import json
import re
import shutil
import subprocess
import types
from html.parser import HTMLParser

import numpy as np
import pytest
import soundfile
from refusals import refusal

from redimnet_jax import metrics, trials
from redimnet_jax.errors import UserError
from redimnet_jax.evaluation import subgroups
from redimnet_jax.evaluation.html_report import Report, chart, figures, hardest, page, players, write
from redimnet_jax.evaluation.html_report.operating_points import thinned
from redimnet_jax.evaluation.protocol import TrialSet

DIMS = (4, 8)
HOSTILE = "</script><img src=x onerror=\"document.title='run'\">&{{ 7 * 7 }}.wav"
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Recordings:
    """Tones; the recording 3 has become unreadable."""

    def __init__(self, count):
        self.samples = np.full(count, 40000)

    def __len__(self):
        return len(self.samples)

    def read(self, index, start=0, samples=None):
        if index == 3:
            raise UserError("c/0.wav cannot be read; restore it.")
        return np.sin(np.arange(40000)[start : start + (samples or 40000)] * 0.1 * (1 + index)).astype(np.float32)


def make_report(**changes):
    names = [f"{speaker}/{i}.wav" for i in range(3) for speaker in "abcdef"]
    names[3] = f"d/{HOSTILE}"
    pairs = [(x, y) for i, x in enumerate(names) for y in names[:i]]
    listed = trials.from_pairs([x for x, _ in pairs], [y for _, y in pairs], [x[0] == y[0] for x, y in pairs])
    speakers = [name[0] if name[0] != "a" else "<b>a\udce9\n" for name in listed.names]
    trial_set = TrialSet(listed, Recordings(len(names)), speakers, f"trials of <i>{HOSTILE}</i>")
    labels = listed.labels
    scores = (np.random.default_rng(0).normal(size=(2, len(labels))) + 1.5 * labels).astype(np.float32)
    dims = {}
    for dim, row in zip(DIMS, scores, strict=True):
        eer = metrics.eer(row, labels)
        dims[str(dim)] = {
            "eer": eer,
            "eer_ci95": [0.5 * eer, 1.5 * eer],
            "threshold": metrics.eer_threshold(row, labels),
            "accuracy": 1 - eer,
            "min_dcf": {"0.01": 1.0, "0.05": 0.9},
            "target_mean": 1.5,
            "nontarget_mean": 0.0,
            "trials": len(labels),
        }
    group = {"trials": 9, "target_trials": 4, "speakers": 2, "small": True, "dims": dims}
    nothing = dict.fromkeys(("eer", "eer_ci95", "far", "frr"))
    for entry in dims.values():
        entry |= {"far": 0.1, "frr": 0.2}
    empty = group | {"dims": {str(dim): nothing for dim in DIMS}}
    results = {
        "score": "cosine",
        "dims": dims,
        "subgroups": {"<sex>": {"outside": 3, "groups": {"<f>": group, "m": empty}}},
        "identification": {"reason": "nobody is enrolled"},
    }
    history = [{"step": e, "epoch": e, "loss": 3.0 - e, "dims": dims} for e in range(3)]
    content = {
        "title": f"Report of {HOSTILE}",
        "trial_set": trial_set,
        "dims": DIMS,
        "scores": scores,
        "results": results,
        "systems": {f"<u>{HOSTILE}": results},
        "history": history,
    }
    return Report(**content | changes)


class Elements(HTMLParser):
    """All elements of a page, with their attributes, and the text."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.text, self._open = [], {}, []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self._open.append(tag)

    def handle_endtag(self, tag):
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data):
        self.text[self._open[-1] if self._open else ""] = (
            self.text.get(self._open[-1] if self._open else "", "") + data
        )

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def content():
    return make_report()


@pytest.fixture(scope="module")
def text(content):
    return page.render(content)


def test_no_name_becomes_an_element_and_nothing_is_loaded(text):
    found = Elements(text)
    assert not found.all("img") and not found.all("i") and not found.all("u") and not found.all("b")
    assert len(found.all("script")) == 2 and text.count("</script>") == 2
    assert not any(name.startswith("on") for _, attributes in found.elements for name in attributes)
    assert {"src", "href"} & {k for tag, a in found.elements for k in a if tag not in ("audio", "a", "use")} == set()
    assert all(a["href"].startswith("#") for tag in ("a", "use") for a in found.all(tag))
    assert "{{ 7 * 7 }}" in text and "http://" not in text.replace("http://www.w3.org/2000/svg", "")
    text.encode()  # No surrogate is left.
    policy = found.all("meta")[1]["content"]
    assert "default-src 'none'" in policy and "'unsafe-inline'" not in policy.split("style-src")[0]


def test_every_figure_has_a_name_and_its_tables_have_headers(text):
    found = Elements(text)
    charts = [a for a in found.all("svg") if "aria-labelledby" in a]
    ids = {a["id"] for _, a in found.elements if "id" in a}
    assert len(charts) == 7  # Dimensions, DET, two densities, epochs, losses, groups.
    for attributes in charts:
        assert attributes["role"] in ("img", "group")
        assert set(attributes["aria-labelledby"].split()) <= ids
    assert len(ids) == sum("id" in a for _, a in found.elements)
    assert len(found.all("caption")) == len(found.all("table")) and all("scope" in a for a in found.all("th"))
    assert all(a.get("aria-label") for a in found.all("audio"))
    headings = [tag for tag, _ in found.elements if re.fullmatch("h[1-6]", tag)]
    assert headings[0] == "h1" and headings.count("h1") == 1 and "h4" not in headings


def test_the_operating_points_are_those_of_the_scores(text, content):
    data = json.loads(re.search(r'id="data">(.*?)</script>', text, re.DOTALL)[1])
    labels = content.trial_set.trials.labels
    assert (data["targets"], data["nontargets"]) == (labels.sum(), (~labels).sum())
    for row, dim, entry in zip(content.scores, DIMS, data["dims"], strict=True):
        assert entry["dim"] == dim and len(entry["x"]) == len(entry["far"])
        for i in range(0, len(entry["far"]), 10):
            # The page holds six digits of a threshold.
            threshold = row[np.argmin(np.abs(row - entry["threshold"][i]))]
            rates = metrics.error_rates(row, labels, threshold)
            assert (entry["far"][i], entry["frr"][i]) == pytest.approx(rates, abs=1e-4)
        assert entry["far"][entry["start"]] == pytest.approx(content.results["dims"][str(dim)]["eer"], abs=0.05)


@pytest.mark.parametrize("kind", ["many", "separable", "constant"])
def test_thinned_points_are_operating_points(kind):
    rng = np.random.default_rng(0)
    labels = np.arange(20000) % 4 == 0
    noise = rng.normal(size=20000)
    scores = {"many": noise + 2 * labels, "separable": 0.1 * np.tanh(noise) + labels, "constant": 0 * noise}[kind]
    curve = metrics.roc(scores, labels)
    points = thinned(curve, 100)
    assert len(points.far) <= 101 and np.isfinite(points.thresholds).all()
    where = np.searchsorted(-curve.thresholds, -points.thresholds)
    np.testing.assert_array_equal(points.far, curve.far[where])
    np.testing.assert_array_equal(points.frr, curve.frr[where])
    assert curve.eer_threshold() in points.thresholds
    if kind == "many":  # No gap in the curve is wide.
        assert np.abs(np.diff(metrics.Roc(points.thresholds, *points_inside(points)).det())).max() < 0.3


def points_inside(points):
    return np.clip(points.far, 1e-4, 1 - 1e-4), np.clip(points.frr, 1e-4, 1 - 1e-4)


@pytest.mark.parametrize("kind", ["separable", "constant"])
def test_extreme_scores_make_a_page(kind, content):
    labels = content.trial_set.trials.labels
    scores = np.array([labels, labels], np.float32) if kind == "separable" else np.ones((2, len(labels)), np.float32)
    changed = make_report(scores=scores, players="none", history=())
    for dim, row in zip(DIMS, scores, strict=True):
        changed.results["dims"][str(dim)] |= {"threshold": metrics.eer_threshold(row, labels), "eer": 0.0}
    text = page.render(changed)
    assert "no curve" in text and "NaN" not in text
    assert text.count("There are none.") == {"separable": 2, "constant": 1}[kind]


def test_hardest_trials_are_the_worst_of_every_pair_of_speakers(content):
    row, trial_set = content.scores[1], content.trial_set
    left, right = trial_set.speaker_numbers()
    pairs = [frozenset(pair) for pair in zip(left.tolist(), right.tolist(), strict=True)]
    found = hardest.false_acceptances(row, trial_set, 0.5, 4)
    worst = {}
    for trial in np.argsort(-row):
        if not trial_set.trials.labels[trial] and row[trial] >= 0.5:
            worst.setdefault(pairs[trial], int(trial))
    assert [each.trial for each in found] == list(worst.values())[:4]
    rejected = hardest.false_rejections(row, trial_set, 0.5)
    assert all(trial_set.trials.labels[each.trial] and each.score < 0.5 for each in rejected)
    assert len({pairs[each.trial] for each in rejected}) == len(rejected) > 1
    assert [each.score for each in rejected] == sorted(each.score for each in rejected)


def test_players_hold_the_recording_and_say_what_cannot_be_read(caplog):
    found = players.players(Recordings(5), [0, 3], "embed")
    kind, _, data = found[0].source.partition("base64,")
    signal, rate = soundfile.read(io.BytesIO(base64.b64decode(data)))
    assert kind == "data:audio/mpeg;" and rate == 16000 and len(signal) / rate == pytest.approx(2.5, abs=0.2)
    spectrum = np.abs(np.fft.rfft(signal[4000:36000]))
    assert np.argmax(spectrum) / 32000 * 2 * np.pi == pytest.approx(0.1, rel=0.01)
    assert found[3] == players.Player(problem="c/0.wav cannot be read; restore it.")
    assert "1 of 2 recordings of the hardest trials have no player" in caplog.text


def test_players_stop_at_the_limit_and_link_to_files(monkeypatch, tmp_path):
    monkeypatch.setattr(players, "MAX_BYTES", len(base64.b64encode(players.encoded(Recordings(1).read(0)))))
    found = players.players(Recordings(3), [0, 1, 2], "embed")
    assert [bool(each.source) for each in found.values()] == [True, False, False]
    files = types.SimpleNamespace(source=lambda index: tmp_path / f"a b<{index}>.wav")
    players.check_links(files)
    (link,) = players.players(files, [1], "link").values()
    assert link.source == f"file://{tmp_path}/a%20b%3C1%3E.wav"
    for source in (b"RIFF", "gs://bucket/a.wav"):
        of = types.SimpleNamespace(source=lambda index, source=source: source)
        assert "players is link" in refusal(players.check_links, of)
    assert players.players(files, [1], "none") == {}


@pytest.mark.parametrize("dims", [(64, 128, 192, 256), (8, 16, 32, 64, 128, 192, 256)])
def test_dimensions_have_places_of_their_own(dims):
    """Narrow ones too, on a logarithmic axis."""
    entry = {"eer": 0.1, "eer_ci95": [0.05, 0.2]}
    chart = figures.eer_by_dimension({"one": {"dims": {str(dim): entry for dim in dims}}})
    places = np.array([place for place, _ in chart.x.marks])
    assert [text for _, text in chart.x.marks] == [str(dim) for dim in dims]
    assert (np.diff(places) > 15).all()
    np.testing.assert_allclose([point.x for point in chart.series[0].points], places, atol=0.1)


def test_ticks_and_paths():
    axis = chart.horizontal("x", 0, 1)
    assert [text for _, text in axis.marks] == ["0", "0.2", "0.4", "0.6", "0.8", "1"]
    assert [float(axis(v)) for v in (-1, 0, 1, 2)] == [chart.LEFT, chart.LEFT, chart.RIGHT, chart.RIGHT]
    assert chart.path(np.array([0.0, 1, 1, 2]), np.array([5.0, 6, 6, 7])) == "M0 5L1 6L2 7"
    assert chart.path(np.zeros(0), np.zeros(0)) == chart.closed(np.zeros(0), np.zeros(0), np.zeros(0)) == ""


def luminance(color):
    channels = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))


def test_colours_can_be_told_from_the_page_in_both_schemes():
    schemes = re.findall(r":root {(.*?)}", page._part("report.css"), re.DOTALL)
    assert len(schemes) == 2
    for scheme in schemes:
        colors = dict(re.findall(r"--([\w]+): (#[0-9a-f]{6})", scheme))
        for name in ("ink", "soft", "accent", "warn", "edge", *(f"c{i}" for i in range(7))):
            lighter, darker = sorted((luminance(colors[name]), luminance(colors["page"])), reverse=True)
            # WCAG 2.2: 4.5 for text, 3 for what else one must see.
            assert (lighter + 0.05) / (darker + 0.05) >= (4.5 if name in ("ink", "soft", "accent", "warn") else 3)


# What a visitor does, as a script that stands in for the page's policy.
VISIT = """<script>
const form = document.getElementById("threshold");
form.value = 0; form.dispatchEvent(new Event("input"));
document.body.dataset.first = document.getElementById("point").textContent;
const box = document.querySelector("#det svg").getBoundingClientRect();
document.querySelector("#det svg").dispatchEvent(
  new PointerEvent("pointermove", {clientX: box.left + 0.9 * box.width, clientY: box.top + 0.8 * box.height}));
document.body.dataset.moved = form.getAttribute("aria-valuetext");
document.body.dataset.wide = document.documentElement.scrollWidth - window.innerWidth;
</script></body>"""


def dom(path, folder, width=500):
    command = [
        BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
        "--disable-component-update", "--disable-sync", f"--user-data-dir={folder / 'profile'}",
        f"--window-size={width},900", "--dump-dom", path.as_uri(),
    ]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")
def test_in_a_browser_the_operating_point_moves_and_no_name_runs(content, tmp_path):
    path = write(tmp_path / "report.html", content)
    found = dom(path, tmp_path)
    assert "<title>Report of &lt;/script&gt;" in found
    assert re.search(r'<form id="operate">', found)  # It is hidden until the script runs.
    assert re.search(r"<output[^>]*>Threshold -?\d+\.\d{4}: accepts", found)
    text = path.read_text()
    without_policy = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text)
    (tmp_path / "visit.html").write_text(without_policy.replace("</body>", VISIT))
    found = dom(tmp_path / "visit.html", tmp_path)
    assert "<title>run</title>" not in found  # Escaping holds without the policy too.
    assert re.search(r'data-first="Threshold [\d.]+: accepts 0\.00 % of the non-target trials', found)
    moved = re.search(r'data-moved="Threshold (-?[\d.]+): accepts ([\d.]+) %.*?rejects ([\d.]+) %', found)
    assert moved and float(moved[2]) > float(moved[3])
    assert int(re.search(r'data-wide="(-?\d+)"', found)[1]) <= 0  # Nothing but tables scrolls sideways.


def test_tables_of_groups_mark_small_ones(content):
    rows = subgroups.table("<sex>", content.results["subgroups"]["<sex>"]).rows
    assert [row[-1] for row in rows] == ["small"] * 4
