"""Random settings, names and files of records are accepted or refused with the package's error."""

import json
import math
import warnings
from dataclasses import fields
from typing import get_args, get_type_hints

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from atesc.app.explore import Question
from atesc.app.run import experiments, parse_parameters, parse_value
from atesc.data.tasks import KINDS, TASKS, check_task
from atesc.inside.checks import configure
from atesc.inside.errors import AtescError, ConfigError, choose
from atesc.inside.records import RecordError, RecordWarning, append_records, load_records
from atesc.method.decoys import DecoyConfig
from atesc.method.distill import DistillConfig
from atesc.method.objectives import ATEsc, CalibratedKD, DecoyEscape, PlainKD
from atesc.method.rivals import (
    CalibratedSplitter,
    ConfidenceSplitter,
    EntropySplitter,
    FeatureSplitter,
    GradientSplitter,
    RandomSplitter,
)
from atesc.method.splitter import PGDSplitter, RadiusSplitter
from atesc.method.traps import LineUpConfig
from atesc.study.presets import Preset, load_preset
from atesc.synthesis.cmi import CMIConfig
from atesc.synthesis.dfq import DFQConfig
from atesc.synthesis.nayer import NAYERConfig
from atesc.teachers.training import TeacherConfig

CONFIGS = [
    TeacherConfig(),
    DFQConfig(),
    CMIConfig(),
    NAYERConfig(),
    DecoyConfig(),
    DistillConfig(),
    PlainKD(),
    CalibratedKD(),
    ATEsc(),
    DecoyEscape(),
    LineUpConfig(),
    PGDSplitter(),
    RadiusSplitter(),
    EntropySplitter(),
    ConfidenceSplitter(),
    CalibratedSplitter(),
    FeatureSplitter(),
    GradientSplitter(),
    RandomSplitter(),
    Question("ntl-plain", 0),
    load_preset("debug"),
]
LIKELY = st.one_of(
    st.integers(-3, 300),
    st.floats(-0.5, 3),
    st.booleans(),
    st.sampled_from([math.nan, math.inf, -math.inf]),
)
PLAIN = st.one_of(
    st.none(),
    LIKELY,
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.binary(max_size=4),
    st.complex_numbers(),
)
VALUES = st.one_of(
    PLAIN,
    st.lists(PLAIN, max_size=3),
    st.lists(PLAIN, max_size=3).map(tuple),
    st.dictionaries(st.text(max_size=3), PLAIN, max_size=2),
    st.sampled_from([*CONFIGS, *map(type, CONFIGS)]),
)


def fuzzed(examples, *strategies):
    """`given`, quick and without a clock; a folder of a test is shared by its examples."""
    limits = settings(
        deadline=None,
        max_examples=examples,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )
    return lambda test: limits(given(*strategies)(test))


def one_line(error):
    text = str(error)
    assert len(text.splitlines()) == 1 and text.isprintable() and len(text) < 600, text


def is_valid(value, kind):
    """An independent reading of an annotation."""
    if kind is float:
        return type(value) in (int, float) and math.isfinite(value)
    if kind == tuple[str, ...]:
        return type(value) is tuple and all(type(item) is str for item in value)
    return (
        any(is_valid(value, option) for option in get_args(kind))
        if get_args(kind)
        else type(value) is kind or (kind not in (int, bool, str) and isinstance(value, kind))
    )


def check_config(made):
    """All fields are of their types, and what makes no sense below 0 is not."""
    hints = get_type_hints(type(made))
    for field in fields(made):
        value = getattr(made, field.name)
        assert is_valid(value, hints[field.name]), (field.name, value)
        if type(value) in (int, float) and field.name not in (
            "ood_weight",
            "mmd_weight",
            "apart_weight",
        ):
            assert value >= 0, (field.name, value)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: type(config).__name__)
def test_any_setting_is_valid_or_refused(config):
    names = [field.name for field in fields(config)]

    @fuzzed(
        40,
        st.dictionaries(
            st.one_of(st.sampled_from(names), st.text("abcdefg_", min_size=1, max_size=6)),
            st.one_of(LIKELY, VALUES),
            min_size=1,
            max_size=3,
        ),
    )
    def check(changes):
        try:
            made = configure(config, **changes)
        except AtescError as error:
            one_line(error)
        else:
            check_config(made)
            assert all(
                getattr(made, name) is value or getattr(made, name) == value
                for name, value in changes.items()
            )

    check()


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: type(config).__name__)
def test_any_constructor_is_strict(config):
    """One field at a time, so that each meets many values."""

    @fuzzed(
        60, st.sampled_from([field.name for field in fields(config)]), st.one_of(LIKELY, VALUES)
    )
    def check(name, value):
        try:
            made = type(config)(
                **{
                    **{field.name: getattr(config, field.name) for field in fields(config)},
                    name: value,
                }
            )
        except AtescError as error:
            one_line(error)
        else:
            check_config(made)

    check()


@fuzzed(
    150,
    st.one_of(st.just("debug"), st.text(max_size=10), PLAIN),
    st.dictionaries(
        st.sampled_from([field.name for field in fields(Preset)] + ["x", "sise"]),
        st.one_of(LIKELY, VALUES),
        max_size=3,
    ),
)
def test_load_preset(name, changes):
    try:
        preset = load_preset(name, **changes)
    except AtescError as error:
        one_line(error)
    else:
        check_config(preset)
        assert name == "debug" and preset.tasks and preset.size % 4 == 0


NAMES = st.one_of(
    st.text(max_size=30),
    st.text("digtsmn->+folder:/ab\n\0", max_size=30),
    st.sampled_from([*TASKS]),
    PLAIN,
)


@fuzzed(300, NAMES, st.one_of(st.none(), st.sampled_from(KINDS), st.text(max_size=5)))
@example("folder:", None)
@example("folder:->", None)
@example("folder:a->folder:b->", None)
def test_check_task(name, kind):
    try:
        assert check_task(name, kind) == name
    except AtescError as error:
        one_line(error)
    else:
        assert "folder:" in name or kind in (None, TASKS[name])


@fuzzed(200, NAMES, st.lists(st.text(max_size=6), max_size=5))
def test_choose(name, known):
    try:
        assert choose("name", name, known) in known
    except ConfigError:
        assert name not in known or not isinstance(name, str)


PAIRS = st.tuples(
    st.one_of(
        st.sampled_from(["seed", "iterations", "preset", "task", "out", "device"]),
        st.text(max_size=6),
    ),
    st.one_of(st.text(max_size=12), st.integers().map(str), st.floats().map(str)),
)


@fuzzed(
    100,
    st.lists(
        st.one_of(PAIRS, PAIRS, PAIRS, st.text(max_size=3), st.tuples(st.text(max_size=2))),
        max_size=4,
    ),
)
def test_parse_parameters(pairs):
    try:
        values = parse_parameters(experiments()["ood_trap"], pairs)
    except AtescError as error:
        one_line(error)
    else:
        assert set(values) == {name for name, _ in pairs}
        assert all(type(values[name]) is int for name in ("seed", "iterations") if name in values)
        json.dumps(values, allow_nan=False).encode()


@fuzzed(
    300,
    st.one_of(st.text(max_size=20), st.integers().map(str), st.floats().map(str), st.characters()),
    st.sampled_from(["int", "float", "str"]),
)
def test_parse_value(text, kind):
    try:
        value = parse_value("x", text, kind)
    except ConfigError as error:
        one_line(error)
    else:
        assert type(value).__name__ == kind and (kind != "float" or math.isfinite(value))
        str(value).encode()


GOOD = [
    {
        "experiment": "e",
        "task": "a->b",
        "teacher": "sl",
        "baseline": "dfq",
        "method": "plain",
        "seed": seed,
        "iacc": 90.5,
        "config": {"steps": [1, 2.5, None, True], "name": "ü"},
    }
    for seed in range(4)
]
LINES = [json.dumps(record).encode() for record in GOOD]
BYTES = [
    b"",
    b"\n",
    b"\r\n",
    b"\0",
    b"\0" * 20,
    b"\xff",
    b"\xef\xbb\xbf",
    b"{",
    b"}",
    b"[]",
    b"null",
    b'"',
    b"NaN",
    b"-Infinity",
    b"1e999",
    b",",
    b"\x1a",
    b"\xed\xa0\x80",
    b'{"seed": NaN}',
    b'{"seed": 1, "seed": 2}',
    b'{"seed": 1e400}',
    b"[" * 100_000,
    b'{"a":' * 5000 + b"1" + b"}" * 5000,
    b'{"a": ' + b"9" * 5000 + b"}",
    b'{"\\ud800": 1}',
    b"{}",
]


@st.composite
def damaged(draw):
    """The file of GOOD after a few accidents."""
    content = bytearray(b"\n".join(LINES) + draw(st.sampled_from([b"\n", b""])))
    if draw(st.booleans()):
        content = content.replace(b"\n", b"\r\n")
    for _ in range(draw(st.integers(0, 3))):
        place = draw(st.integers(0, len(content)))
        what = draw(st.sampled_from(["flip", "cut", "drop", "insert", "line"]))
        if what == "flip" and place < len(content):
            content[place] ^= 1 << draw(st.integers(0, 7))
        elif what == "cut":
            del content[place:]
        elif what == "drop":
            del content[place : place + draw(st.integers(1, 40))]
        elif what == "insert":
            content[place:place] = draw(st.one_of(st.sampled_from(BYTES), st.binary(max_size=20)))
        else:
            ends = [0, *(i + 1 for i, byte in enumerate(content) if byte == 10)]
            at = draw(st.sampled_from(ends))
            content[at:at] = draw(st.sampled_from(BYTES)) + b"\n"
    return bytes(content)


def finite(value):
    """No NaN or infinity anywhere."""
    json.dumps(value, allow_nan=False)


def loaded(path):
    """Records, or the error, which names the file and the line."""
    with warnings.catch_warnings(record=True) as recorded:
        warnings.simplefilter("always")
        try:
            records = load_records(path)
        except RecordError as error:
            one_line(error)
            assert str(path) in str(error) and ", line " in str(error)
            return None
    assert all(warning.category is RecordWarning for warning in recorded)
    for record in records:
        assert isinstance(record, dict)
        finite(record)
    return records


@fuzzed(
    400,
    st.one_of(
        damaged(),
        st.binary(max_size=60),
        st.lists(st.sampled_from([*LINES, *BYTES]), max_size=5).map(b"\n".join),
    ),
)
@example(b"\xef\xbb\xbf" + b"\r\n".join(LINES) + b"\r\n\r\n")
@example(LINES[0] + b"\n" + b"\0" * 4096)
@example(LINES[0] + b"\n\0\0\0\n" + LINES[1])
def test_a_damaged_file_is_read_or_refused_and_no_line_is_lost(tmp_path, content):
    path, new = tmp_path / "records.jsonl", {**GOOD[0], "seed": 99}
    (tmp_path / "records.jsonl.torn").unlink(missing_ok=True)
    path.write_bytes(content)
    before = loaded(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RecordWarning)
        try:
            append_records(path, [new])
        except RecordError as error:
            assert before is None and path.read_bytes() == content, error
            return
    assert before is not None, "what cannot be read is not written to"
    after, now = loaded(path), path.read_bytes()
    assert after is not None and after[-1] == new
    assert [record for record in before if record.get("seed") != 99] == [
        record for record in after if record.get("seed") != 99
    ]
    torn = (
        (tmp_path / "records.jsonl.torn").read_bytes()
        if (tmp_path / "records.jsonl.torn").exists()
        else b""
    )
    assert all(row in now or row in torn for row in content.split(b"\n")), (
        "every byte is in the file, or kept aside"
    )


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=8,
)
ANY = st.one_of(
    JSON,
    st.binary(max_size=3),
    st.complex_numbers(),
    st.sets(st.integers(), max_size=2),
    st.just(object()),
    st.dictionaries(st.one_of(st.integers(0, 1), st.sampled_from(["0", "1"])), JSON, max_size=3),
)


@fuzzed(
    250,
    st.lists(
        st.one_of(
            st.dictionaries(st.text(max_size=5), ANY, max_size=3),
            st.dictionaries(st.text(max_size=5), ANY, max_size=3),
            ANY,
        ),
        max_size=3,
    ),
)
def test_what_is_written_can_be_read(tmp_path, records):
    path = tmp_path / "records.jsonl"
    path.write_bytes(LINES[0] + b"\n")
    try:
        append_records(path, records)
    except AtescError as error:
        one_line(error)
        assert path.read_bytes() == LINES[0] + b"\n"
    else:
        written = loaded(path)
        assert len(path.read_bytes().splitlines()) == 1 + len(records)
        assert written[0] == GOOD[0] and (
            not records or written[-1] == json.loads(json.dumps(records[-1]))
        )


@fuzzed(60, st.sampled_from(sorted(GOOD[0])), st.integers(0, 3))
def test_a_lacking_field_is_named(tmp_path, name, seed):
    path = tmp_path / "records.jsonl"
    path.write_text(
        json.dumps({key: value for key, value in GOOD[seed].items() if key != name}) + "\n"
    )
    (record,) = load_records(path)
    with pytest.raises(RecordError, match=f"records.jsonl: a record .*lacks the field '{name}'"):
        record[name]
    assert record.get(name) is None and name not in record
