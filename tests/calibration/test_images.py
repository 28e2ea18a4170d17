import numpy as np
import pytest
from PIL import Image

from onnx_hyvit.calibration import InputInfo, Preprocess, open_source
from onnx_hyvit.calibration.images import find_images, read_image
from onnx_hyvit.errors import CalibrationError

INPUT = InputInfo("x", np.dtype("float32"), (None, 3, 8, 8))
PLAIN = Preprocess(crop="none", keep_ratio=False)


def picture(height=12, width=10, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / ".hidden").mkdir()
    names = ["c.png", "a.jpg", "b/d.webp", "b/A.BMP", "e.jpeg", ".hidden/z.png"]
    for seed, name in enumerate(names):
        Image.fromarray(picture(seed=seed)).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    return tmp_path


def test_images_are_found_recursively_and_sorted(folder):
    found = [path.relative_to(folder).as_posix() for path in find_images(folder)]
    assert found == ["a.jpg", "b/A.BMP", "b/d.webp", "c.png", "e.jpeg"]


def test_a_folder_streams_preprocessed_batches(folder):
    source = open_source(folder, [INPUT], preprocess=PLAIN, batch_size=2)
    assert len(source) == 5
    batches = list(source)
    assert [ids for ids, _ in batches] == [["a.jpg", "b/A.BMP"], ["b/d.webp", "c.png"], ["e.jpeg"]]
    expected = np.asarray(Image.fromarray(picture(seed=0)).resize((8, 8), Image.Resampling.BILINEAR), np.float32) / 255
    np.testing.assert_allclose(batches[1][1]["x"][1], expected.transpose(2, 0, 1), atol=1e-6)


def test_one_image_is_a_source_too(folder):
    assert next(iter(open_source(folder / "c.png", [INPUT])))[0] == ["c.png"]


def test_an_unreadable_image_is_named_and_skipped_only_when_asked(folder):
    data = (folder / "c.png").read_bytes()
    (folder / "c.png").write_bytes(data[: len(data) // 2])
    (folder / "e.jpeg").write_text("not a picture")
    with pytest.raises(CalibrationError, match=r"c.png: unreadable image.*skip_unreadable"):
        list(open_source(folder, [INPUT]))
    source = open_source(folder, [INPUT], skip_unreadable=True, batch_size=8)
    assert [name for ids, _ in source for name in ids] == ["a.jpg", "b/A.BMP", "b/d.webp"]
    assert len(source) == 3
    assert len(source.warnings) == 2
    assert "e.jpeg" in source.warnings[1]


def test_nothing_readable_is_an_error_even_when_skipping(tmp_path):
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(CalibrationError, match="no image could be read"):
        list(open_source(tmp_path, [INPUT], skip_unreadable=True))


def test_a_huge_image_is_refused_before_it_is_decoded(tmp_path):
    Image.new("1", (30_000, 30_000)).save(tmp_path / "bomb.png")
    with pytest.raises(CalibrationError, match=r"bomb.png: .*pixels \(a decompression bomb\?\)"):
        list(open_source(tmp_path, [INPUT]))


def test_the_pixel_limit_can_be_set(folder):
    with pytest.raises(CalibrationError, match="10x12 is more than 100 pixels"):
        list(open_source(folder, [INPUT], max_pixels=100))


def test_the_fingerprint_sees_content_and_preprocessing(folder):
    first = open_source(folder, [INPUT], preprocess=PLAIN)
    assert first.fingerprint() == open_source(folder, [INPUT], preprocess=PLAIN, batch_size=3).fingerprint()
    assert first.fingerprint() != open_source(folder, [INPUT], preprocess=Preprocess()).fingerprint()
    before = first.fingerprint()
    Image.fromarray(picture(seed=9)).save(folder / "c.png")
    assert open_source(folder, [INPUT], preprocess=PLAIN).fingerprint() != before


def test_exif_orientation_is_applied(tmp_path):
    pixels = picture()
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 90 degrees clockwise
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    np.testing.assert_array_equal(np.asarray(read_image(tmp_path / "turned.png")), np.rot90(pixels, -1))


def test_modes_become_rgb_or_gray(tmp_path):
    rgb = Image.fromarray(picture())
    for mode in ("RGBA", "CMYK", "P", "L", "LA", "1"):
        suffix = "jpg" if mode == "CMYK" else "png"
        rgb.convert(mode).save(tmp_path / f"{mode}.{suffix}")
        image = read_image(tmp_path / f"{mode}.{suffix}")
        assert image.mode == ("L" if mode in ("L", "LA", "1") else "RGB"), mode
        assert image.size == rgb.size


def test_sixteen_bits_are_scaled_to_eight(tmp_path):
    deep = (picture()[:, :, 0].astype(np.uint16)) * 257
    Image.fromarray(deep).save(tmp_path / "deep.png")
    np.testing.assert_array_equal(np.asarray(read_image(tmp_path / "deep.png")), deep // 257)


def test_gray_images_feed_colour_and_gray_models(tmp_path):
    Image.fromarray(picture()[:, :, 0]).save(tmp_path / "g.png")
    values = next(iter(open_source(tmp_path, [INPUT], preprocess=PLAIN)))[1]["x"]
    np.testing.assert_array_equal(values[:, 0], values[:, 2])
    gray = InputInfo("x", np.dtype("float32"), (1, 1, 8, 8))
    source = open_source(tmp_path, [gray], preprocess=Preprocess(channel_order="gray"))
    assert next(iter(source))[1]["x"].shape == (1, 1, 8, 8)
    with pytest.raises(CalibrationError, match=r"takes 1 channels.*channel_order RGB makes 3"):
        open_source(tmp_path, [gray])


def test_images_cannot_fill_two_inputs(folder):
    with pytest.raises(CalibrationError, match="images fill one input"):
        open_source(folder, [INPUT, InputInfo("y", np.dtype("float32"), (None, 3))])


def test_an_eight_bit_input_gets_whole_pixels(folder):
    info = InputInfo("x", np.dtype("uint8"), (1, 8, 8, 3))
    source = open_source(folder, [info], preprocess=Preprocess(scale=1.0))
    values = next(iter(source))[1]["x"]
    assert values.dtype == np.uint8
    assert values.shape == (1, 8, 8, 3)
