"""Tables and comparisons against pandas, numpy and scipy; figures that show themselves."""

import math

import nbformat
import numpy as np
import pandas as pd
import pytest
import scipy.stats
from matplotlib.figure import Figure
from nbclient import NotebookClient

from atesc.inside.errors import InputError
from atesc.study.plots import plot_bars, plot_curves, plot_dots, plot_scatter, spread
from atesc.study.query import GAP, groups, ood_knowledge, paired, query, select

TASKS = ("digits->digits_photo", "digits->photos", "digits+sig")
KINDS = {TASKS[0]: "close-set", TASKS[1]: "open-set", TASKS[2]: "backdoor"}
STUDENTS = (("sl", "plain"), ("ntl", "plain"), ("ntl", "ckd"))


@pytest.fixture
def records():
    """Random results of a study, of which some runs are missing, in random order."""
    random = np.random.default_rng(0)
    found = [
        {
            "task": task,
            "kind": KINDS[task],
            "baseline": baseline,
            "teacher": teacher,
            "method": method,
            "seed": seed,
            "iacc": random.uniform(50, 100),
            "mislead": random.uniform(0, 100),
            "olacc": random.uniform(0, 100),
            "asr": random.uniform(0, 100),
            "curve": [
                {"iteration": i, "iacc": random.uniform(0, 100), "mislead": 99.0} for i in (1, 2)
            ],
        }
        for task in TASKS
        for baseline in ("dfq", "nayer")
        for teacher, method in STUDENTS
        for seed in range(5)
        if random.uniform() < 0.8
    ]
    return [found[i] for i in random.permutation(len(found))]


def frame(records):
    """The records as pandas has them, with OOD knowledge by a formula of its own."""
    known = pd.DataFrame([{k: v for k, v in r.items() if k != "curve"} for r in records])
    known["ood"] = np.where(
        known.kind == "close-set",
        known.mislead,
        np.where(known.kind == "open-set", known.olacc, known.asr),
    )
    return known


def test_a_query_is_a_groupby(records):
    shown = query(records, ("task", "teacher", "method"), "baseline", ("iacc", "ood"), digits=2)
    keys = ["task", "teacher", "method", "baseline"]
    grouped = frame(records).groupby(keys)[["iacc", "ood"]].agg(["mean", "std", "count"])
    titles = {"sl": "SL", "ntl": "NTL", "plain": "plain KD", "ckd": "calibrated KD"}
    for (task, teacher, method, baseline), row in grouped.iterrows():
        for field, title in (("iacc", "IAcc %"), ("ood", "OOD knowledge %")):
            average, deviation, n = row[field]
            line = shown.loc[(task, titles[teacher], titles[method])]
            text = f"{average:.2f}" + (f" ± {deviation:.2f}" if n > 1 else "")
            assert line[(baseline.upper(), title)] == text
            assert line[(baseline.upper(), "n")] == n
    assert len(shown) == 9 and (shown == GAP).sum().sum() == 3 * (18 - len(grouped))


def test_levels_say_what_is_shown_and_show_gaps(records):
    some = select(records, task=TASKS[0], baseline="dfq")
    wanted = ["ntl-ckd", "ntl-plain", "sl-ckd"]
    shown = query(some, "student", levels={"student": wanted})
    assert [title.split(" ")[0] for title in shown.index] == ["NTL", "NTL", "SL"]
    assert shown.iloc[2].tolist() == [GAP] * 3
    assert list(query([], "student", levels={"student": wanted}).n) == [GAP] * 3


def test_a_cell_holds_one_record_a_seed(records):
    with pytest.raises(InputError, match="they differ in task, baseline"):
        query(records, "student")


def test_functions_are_fields_and_measures(records):
    shown = query(
        select(records, baseline="dfq"),
        {"kind": lambda r: r["kind"], "student": "student"},
        values={"half": lambda r: r["iacc"] / 2},
    )
    group = frame(records).query("baseline == 'dfq' and kind == 'open-set' and method == 'ckd'")
    text = f"{group.iacc.mean() / 2:.1f} ± {group.iacc.std() / 2:.1f}"
    assert shown.loc[("open-set", "NTL teacher, calibrated KD"), "half"] == text


def test_groups_divide_all_records_once(records):
    parts = groups(records, ("baseline", "student"))
    assert sorted(id(r) for part in parts.values() for r in part) == sorted(map(id, records))


@pytest.mark.parametrize("field", ("iacc", "ood"))
def test_paired_differences_are_the_paired_t_test(records, field):
    result = paired(records, field, {"method": "ckd"}, {"method": "plain", "teacher": "ntl"})
    keys = ["task", "baseline", "seed"]
    known = (
        frame(records).query("teacher == 'ntl'").pivot(index=keys, columns="method", values=field)
    )
    known = known.dropna()
    test = scipy.stats.ttest_rel(known.ckd, known.plain)
    low, high = test.confidence_interval(0.95)
    difference = known.ckd - known.plain
    assert result.n == len(known) > 10 and result.positive == (difference > 0).sum()
    assert np.allclose([result.mean, result.low, result.high], [difference.mean(), low, high])


def test_few_pairs_have_no_interval(records):
    one = [r for r in records if r["seed"] == 0 and r["task"] == TASKS[0]]
    few = paired(select(one, baseline="dfq"), "iacc", {"student": "ntl-plain"}, {"student": "x"})
    assert few.n == 0 and math.isnan(few.mean) and math.isnan(few.low)
    twins = [{**r, "teacher": "ntl", "method": m} for r in one[:1] for m in ("plain", "ckd")]
    single = paired(twins, "iacc", {"method": "ckd"}, {"method": "plain"})
    assert single.n == 1 and single.mean == 0 and math.isnan(single.low)


def test_ambiguous_partners_are_refused(records):
    with pytest.raises(InputError, match="add a field to one and other"):
        paired(records, "iacc", {"teacher": "ntl"}, {"teacher": "sl"})


def test_what_was_not_measured_makes_no_pair(records):
    gone = [{**r, "iacc": None} if r["seed"] == 1 else r for r in records]
    kinds = {"student": "ntl-ckd"}, {"student": "ntl-plain"}
    left = [r for r in records if r["seed"] != 1]
    assert paired(gone, "iacc", *kinds) == paired(left, "iacc", *kinds)


def drawn(axis):
    """Finite coordinates of all lines of an axis."""
    return [tuple(map(float, point)) for line in axis.get_lines() for point in line.get_xydata()]


def test_plots_draw_the_numbers(records):
    some = select(records, task=TASKS[0], baseline="dfq")
    axis = plot_dots(some, "student").axes[0]
    assert {x for x, _ in drawn(axis)} >= {r["iacc"] for r in some}
    mean = np.mean([r["curve"][1]["iacc"] for r in some if r["method"] == "ckd"])
    assert any(x == 2 and math.isclose(y, mean) for x, y in drawn(plot_curves(some).axes[0]))
    heights = [bar.get_height() for bar in plot_bars(some, values=["iacc"]).axes[0].patches]
    means = frame(some).groupby(["teacher", "method"]).iacc.mean()
    assert np.allclose(sorted(heights), sorted(means))
    knowledge = np.mean([ood_knowledge(r) for r in some if r["method"] == "ckd"])
    assert any(math.isclose(x, knowledge) for x, _ in drawn(plot_scatter(some).axes[0]))


def test_bands_of_percentages_stay_within_0_and_100(records):
    axis = plot_curves(select(records, task=TASKS[0], baseline="dfq")).axes[0]
    limits = [band.get_paths()[0].get_extents() for band in axis.collections]
    assert limits and all(box.y0 >= 0 and box.y1 <= 100 for box in limits)


def test_labels_keep_their_distance():
    placed = spread([0.0, 0.0, 0.5, 0.99, 1.0], 0.1, 0.0, 1.0)
    assert all(b - a >= 0.1 - 1e-9 for a, b in zip(placed, placed[1:]))
    assert placed[0] >= 0 and placed[-1] <= 1


SHOW = """
import tempfile
from atesc.study.plots import plot_curves, save_figure
record = {"task": "a", "baseline": "dfq", "teacher": "sl", "method": "plain", "seed": 0}
record["curve"] = [{"iteration": i, "iacc": 50.0} for i in (1, 2)]
figure = plot_curves([record], values="iacc")
"""


@pytest.mark.parametrize("backend", ("", "%matplotlib inline\nimport matplotlib.pyplot\n"))
def test_every_figure_of_a_notebook_is_shown_once(backend):
    shows = ["figure", "save_figure(figure, tempfile.mkdtemp(), 'one');"]
    cells = map(nbformat.v4.new_code_cell, [backend + SHOW, *shows, *shows])
    notebook = nbformat.v4.new_notebook(cells=list(cells))
    NotebookClient(notebook, timeout=120, kernel_name="python3").execute()
    images = [sum("image/png" in o.get("data", {}) for o in c.outputs) for c in notebook.cells]
    assert images == [0, 1, 1, 1, 1]


def test_outside_of_a_notebook_nothing_is_shown(tmp_path, records, capsys):
    from atesc.study.plots import save_figure

    figure = plot_curves(select(records, task=TASKS[0], baseline="dfq"))
    assert isinstance(figure, Figure) and save_figure(figure, tmp_path, "curves").exists()
    assert capsys.readouterr().out == ""
