import zipfile

import numpy as np
import pytest

from onnx_hyvit.calibration import FirstSamples, InputInfo, open_source
from onnx_hyvit.errors import CalibrationError, ConfigError

IMAGE = InputInfo("x", np.dtype("float32"), (None, 3, 4, 5))
FIXED = InputInfo("x", np.dtype("float32"), (4, 3, 4, 5))
TOKENS = InputInfo("ids", np.dtype("int64"), (None, 6))


@pytest.fixture
def values():
    return np.random.default_rng(0).standard_normal((10, 3, 4, 5)).astype(np.float32)


def samples_of(source, name="x"):
    ids, rows = [], []
    for samples, feeds in source:
        ids += samples
        rows.append(feeds[name][: len(samples)])
    return ids, np.concatenate(rows)


class Reader:
    """A CalibrationDataReader as users write it: it can be read once."""

    def __init__(self, feeds):
        self.feeds = iter(feeds)

    def get_next(self):
        return next(self.feeds, None)


def as_npy(tmp_path, values):
    np.save(tmp_path / "x.npy", values)
    return tmp_path / "x.npy"


def as_npz(tmp_path, values):
    np.savez(tmp_path / "x.npz", x=values)
    return str(tmp_path / "x.npz")


def as_compressed_npz(tmp_path, values):
    np.savez_compressed(tmp_path / "c.npz", x=values)
    return tmp_path / "c.npz"


FORMS = {
    "npy": as_npy,
    "npz": as_npz,
    "compressed": as_compressed_npz,
    "array": lambda _, values: values,
    "dict": lambda _, values: {"x": values},
}
FEEDS = {
    "list": lambda values: [{"x": row[None]} for row in values],
    "reader": lambda values: Reader([{"x": row[None]} for row in values]),
    "generator": lambda values: ({"x": row[None]} for row in values),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_every_form_of_arrays_gives_the_same_samples_each_time(tmp_path, values, form, batch_size):
    source = open_source(FORMS[form](tmp_path, values), [IMAGE], batch_size=batch_size)
    for _ in range(2):
        ids, rows = samples_of(source)
        assert ids == list(range(10))
        np.testing.assert_array_equal(rows, values)
    assert len(source) == 10
    assert max(len(feeds["x"]) for _, feeds in source) == min(batch_size, 10)


@pytest.mark.parametrize("form", FEEDS)
def test_every_form_of_feeds_can_be_read_again(values, form):
    source = open_source(FEEDS[form](values), [IMAGE])
    for _ in range(2):
        np.testing.assert_array_equal(samples_of(source)[1], values)
    assert len(source) == 10


def test_feeds_may_differ_in_their_free_dimensions():
    info = InputInfo("x", np.dtype("float32"), (None, 3, "h", "w"))
    shapes = [(1, 3, 4, 4), (2, 3, 5, 6)]
    source = open_source(Reader([{"x": np.ones(shape, np.float32)} for shape in shapes]), [info])
    assert [feeds["x"].shape for _, feeds in source] == shapes


@pytest.mark.parametrize("form", FORMS)
def test_a_subset_is_seeded_and_keeps_its_order(tmp_path, values, form):
    data = FORMS[form](tmp_path, values)
    ids, rows = samples_of(open_source(data, [IMAGE], samples=4, seed=7, batch_size=3))
    assert ids == sorted(ids)
    assert len(set(ids)) == 4
    np.testing.assert_array_equal(rows, values[ids])
    assert samples_of(open_source(data, [IMAGE], samples=4, seed=7))[0] == ids
    assert any(samples_of(open_source(data, [IMAGE], samples=4, seed=seed))[0] != ids for seed in range(5))


def test_a_reader_gives_its_first_samples(values):
    source = open_source(Reader([{"x": row[None]} for row in values]), [IMAGE], samples=3)
    np.testing.assert_array_equal(samples_of(source)[1], values[:3])


def test_a_limit_on_the_batch_of_the_first_samples_counts(values):
    source = FirstSamples(open_source(values, [IMAGE], batch_size=8), 5)
    assert len(source) == 8 and [len(ids) for ids, _ in source] == [8]
    source.limit_batch(2)
    assert source.batch_size == 2
    assert len(source) == 6 and [len(ids) for ids, _ in source] == [2, 2, 2]
    np.testing.assert_array_equal(samples_of(source)[1], values[:6])


def test_a_fixed_batch_is_filled_up_and_says_so(values):
    source = open_source(values, [FIXED], batch_size=1)
    batches = list(source)
    assert [len(feeds["x"]) for _, feeds in batches] == [4, 4, 4]
    assert [len(ids) for ids, _ in batches] == [4, 4, 2]
    np.testing.assert_array_equal(batches[2][1]["x"], values[[8, 9, 9, 9]])
    assert len(source.warnings) == 1
    assert "repeats its last sample 2 x" in source.warnings[0]


def test_dtypes_of_the_same_kind_are_cast():
    source = open_source({"ids": np.ones((3, 6), np.int32)}, [TOKENS])
    assert samples_of(source, "ids")[1].dtype == np.int64
    source = open_source(np.ones((3, 3, 4, 5)), [IMAGE])
    assert samples_of(source)[1].dtype == np.float32


def test_several_inputs_are_read_together(tmp_path, values):
    np.savez(tmp_path / "two.npz", x=values, ids=np.arange(60).reshape(10, 6))
    source = open_source(tmp_path / "two.npz", [IMAGE, TOKENS], batch_size=4, samples=5)
    for ids, feeds in source:
        np.testing.assert_array_equal(feeds["x"], values[ids])
        np.testing.assert_array_equal(feeds["ids"][:, 0], np.array(ids) * 6)


def test_the_fingerprint_is_of_the_content(tmp_path, values):
    prints = {open_source(form(tmp_path, values), [IMAGE], batch_size=3).fingerprint() for form in FORMS.values()}
    assert len(prints) == 1
    other = values.copy()
    other[9, 2, 3, 4] += 1
    assert open_source(other, [IMAGE]).fingerprint() not in prints
    assert open_source(values, [IMAGE], samples=9).fingerprint() not in prints


ERRORS = {
    "rank": (lambda v: v[0], "shape 3x4x5, expected Nx3x4x5; the first axis must count samples"),
    "nhwc": (lambda v: v.transpose(0, 2, 3, 1), "looks like NHWC: transpose to NCHW"),
    "size": (lambda v: v[:, :, :2], "shape 10x3x2x5, expected Nx3x4x5; resize"),
    "uint8": (lambda v: v.astype(np.uint8), "dtype uint8, expected float32; values 0-255"),
    "int": (lambda v: v.astype(np.int64), "dtype int64, expected float32; convert with"),
    "empty": (lambda v: v[:0], "there are no samples"),
}


@pytest.mark.parametrize("case", ERRORS)
@pytest.mark.parametrize("form", FORMS)
def test_arrays_that_do_not_fit(tmp_path, values, case, form):
    change, message = ERRORS[case]
    with pytest.raises(CalibrationError) as caught:
        open_source(FORMS[form](tmp_path, np.ascontiguousarray(change(values))), [IMAGE])
    text = str(caught.value)
    assert message in text
    assert "\n" not in text
    if form in ("npy", "npz"):
        assert f"x.{form}" in text


@pytest.mark.parametrize("form", [*FORMS, *FEEDS])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_the_sample_that_is_not_finite_is_named(tmp_path, values, form, bad):
    values[6, 1, 2, 3] = bad
    data = FORMS[form](tmp_path, values) if form in FORMS else FEEDS[form](values)
    source = open_source(data, [IMAGE], batch_size=4)
    with pytest.raises(CalibrationError, match=f"sample 6: input 'x' holds {'NaN' if np.isnan(bad) else 'Inf'}"):
        list(source)


@pytest.mark.parametrize("form", FEEDS)
def test_feeds_that_do_not_fit_are_named(values, form):
    with pytest.raises(CalibrationError, match=r"sample 3: input 'x' has shape 1x4x5x3.*NHWC"):
        feeds = [row[None] if i != 3 else row.transpose(1, 2, 0)[None] for i, row in enumerate(values)]
        make = {"list": list, "reader": Reader, "generator": iter}[form]
        open_source(make([{"x": value} for value in feeds]), [IMAGE])


def test_wrong_and_missing_names_list_both_sides(tmp_path, values):
    np.savez(tmp_path / "x.npz", images=values)
    with pytest.raises(CalibrationError, match=r"x.npz: no array for input 'x'; the model takes 'x', found 'images'"):
        open_source(tmp_path / "x.npz", [IMAGE])
    with pytest.raises(CalibrationError, match="'y' is not an input of the model"):
        open_source({"x": values, "y": values}, [IMAGE])
    with pytest.raises(CalibrationError, match="sample 0: no array for input 'x'"):
        open_source([{"y": values}], [IMAGE])
    with pytest.raises(CalibrationError, match=r"an .npy holds one array, but the model takes 'x', 'ids'"):
        open_source(as_npy(tmp_path, values), [IMAGE, TOKENS])


def test_inputs_with_different_numbers_of_samples(values):
    with pytest.raises(CalibrationError, match="differ in their number of samples"):
        open_source({"x": values, "ids": np.ones((4, 6), np.int64)}, [IMAGE, TOKENS])


def test_values_that_look_like_pixels_are_warned_of(values):
    source = open_source(np.abs(values) * 50, [IMAGE])
    list(source)
    assert any("divide by 255?" in warning for warning in source.warnings)
    quiet = open_source(values, [IMAGE])
    list(quiet)
    assert quiet.warnings == []


def test_pickles_are_refused_and_never_loaded(tmp_path, values):
    np.save(tmp_path / "o.npy", np.array([{"a": 1}], object), allow_pickle=True)
    np.savez(tmp_path / "o.npz", x=np.array([{"a": 1}], object))
    for name in ("o.npy", "o.npz"):
        with pytest.raises(CalibrationError, match="pickled Python objects"):
            open_source(tmp_path / name, [IMAGE])
    with pytest.raises(CalibrationError, match="Python objects"):
        open_source(np.array([None]), [IMAGE])


def test_a_zip_bomb_is_refused_before_it_is_inflated(tmp_path):
    with (
        zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("x.npy", "w") as out,
    ):
        np.lib.format.write_array_header_1_0(
            out, {"descr": "<f4", "fortran_order": False, "shape": (4_000_000, 3, 4, 5)}
        )
        for _ in range(600):
            out.write(bytes(1 << 20))
    with pytest.raises(CalibrationError, match="zip bomb"):
        open_source(tmp_path / "bomb.npz", [IMAGE])


@pytest.mark.parametrize("suffix", ["npy", "npz"])
def test_damaged_files(tmp_path, values, suffix):
    path = as_npy(tmp_path, values) if suffix == "npy" else tmp_path / as_npz(tmp_path, values)
    data = path.read_bytes()
    for content in (b"", b"garbage" * 20, data[: len(data) // 2]):
        path.write_bytes(content)
        with pytest.raises(CalibrationError, match=f"x.{suffix}") as caught:
            open_source(path, [IMAGE])
        assert "\n" not in str(caught.value)


def test_a_damaged_compressed_member_is_reported_when_read(tmp_path, values):
    path = as_compressed_npz(tmp_path, values)
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 40] = bytes(40)
    path.write_bytes(bytes(data))
    with pytest.raises(CalibrationError, match=r"c.npz"):
        list(open_source(path, [IMAGE]))


def test_other_errors(tmp_path, values):
    with pytest.raises(CalibrationError, match="no such file or folder"):
        open_source(tmp_path / "missing", [IMAGE])
    with pytest.raises(CalibrationError, match="no images in the folder"):
        open_source(tmp_path, [IMAGE])
    (tmp_path / "data.txt").write_text("x")
    with pytest.raises(CalibrationError, match=r"expected a folder of images.*found .txt"):
        open_source(tmp_path / "data.txt", [IMAGE])
    np.save(tmp_path / "f.npy", np.asfortranarray(values))
    with pytest.raises(CalibrationError, match="Fortran order"):
        open_source(tmp_path / "f.npy", [IMAGE])
    with pytest.raises(CalibrationError, match="list is empty"):
        open_source([], [IMAGE])
    with pytest.raises(CalibrationError, match="gave no samples"):
        open_source(Reader([]), [IMAGE])
    with pytest.raises(CalibrationError, match="expected a dict"):
        open_source(iter([values]), [IMAGE])
    with pytest.raises(CalibrationError, match="cannot use int"):
        open_source(3, [IMAGE])
    with pytest.raises(ConfigError, match="samples must be 1 or more"):
        open_source(values, [IMAGE], samples=0)
    with pytest.raises(CalibrationError, match="no common batch"):
        open_source({"x": values, "s": values}, [FIXED, InputInfo("s", np.dtype("float32"), (1, 3, 4, 5))])
