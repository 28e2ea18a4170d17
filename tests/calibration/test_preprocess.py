import json

import numpy as np
import pytest
from PIL import Image

from onnx_hyvit.calibration import PRESETS, InputInfo, Preprocess, load_preprocess
from onnx_hyvit.errors import CalibrationError, ConfigError


def model_input(*shape):
    return InputInfo("x", np.dtype("float32"), shape)


@pytest.fixture
def image():
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 400, 3)).astype(np.uint8))


def test_imagenet_is_resize_256_crop_224(image):
    resized = image.resize((341, 256), Image.Resampling.BILINEAR)  # 256 * 400 / 300 = 341.3
    left, top = round((341 - 224) / 2), 16
    pixels = np.asarray(resized.crop((left, top, left + 224, top + 224)), np.float32) / 255
    expected = (pixels - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])
    found = PRESETS["imagenet"].resolve(model_input(1, 3, 224, 224))(image)
    np.testing.assert_allclose(found, expected.transpose(2, 0, 1), atol=1e-5)


def test_timm_mobilevit_and_its_transformers_twin_differ_in_channel_order(image):
    timm = PRESETS["timm-mobilevit"].resolve(model_input(1, 3, 256, 256))
    apple = PRESETS["hf-mobilevit"].resolve(model_input(1, 3, 256, 256))
    assert (timm.resize, timm.channel_order) == ("bicubic", "RGB")
    pixels = np.asarray(image.resize((384, 288), Image.Resampling.BILINEAR).crop((64, 16, 320, 272)), np.float32) / 255
    np.testing.assert_allclose(apple(image), pixels[:, :, ::-1].transpose(2, 0, 1), atol=1e-6)


@pytest.mark.parametrize(("preset", "low", "high"), [("unit", 0, 1), ("signed", -1, 1), ("raw", 0, 255)])
def test_value_ranges(preset, low, high):
    preprocess = PRESETS[preset].resolve(model_input("n", 3, 4, 4))
    assert preprocess(Image.new("RGB", (9, 5), (0, 0, 0))).min() == pytest.approx(low)
    assert preprocess(Image.new("RGB", (9, 5), (255, 255, 255))).max() == pytest.approx(high)


def test_text_lines_keep_their_ratio_and_are_padded_with_zeros():
    preprocess = PRESETS["ppocr-rec"].resolve(model_input("n", 3, 48, "w"))
    short = preprocess(Image.new("RGB", (100, 24), (255, 0, 0)))
    assert short.shape == (3, 48, 320)
    np.testing.assert_allclose(short[:, 0, 0], [-1, -1, 1], atol=1e-6)  # BGR
    assert (short[:, :, 200:] == 0).all()
    assert preprocess(Image.new("RGB", (1000, 48))).shape == (3, 48, 1000)
    fixed = PRESETS["ppocr-rec"].resolve(model_input(1, 3, 48, 320))
    assert fixed(Image.new("RGB", (1000, 48))).shape == (3, 48, 320)


def test_padding_in_the_middle():
    preprocess = Preprocess(size=(8, 8), pad="center", pad_value=255).resolve(model_input(1, 3, 8, 8))
    found = preprocess(Image.new("RGB", (16, 8)))
    assert found[0, :, 0].tolist() == [1, 1, 0, 0, 0, 0, 1, 1]


@pytest.mark.parametrize("shape", [(1, 3, 16, 32), (1, 16, 32, 3)])
@pytest.mark.parametrize("preset", [name for name in PRESETS if name != "ppocr-rec"])
@pytest.mark.parametrize("size", [(7, 90), (90, 7), (16, 32), (1, 1)])
def test_every_preset_makes_the_shape_of_the_model(shape, preset, size):
    preprocess = PRESETS[preset].resolve(model_input(*shape))
    assert preprocess(Image.new("RGB", size)).shape == shape[1:]


def test_a_table_in_toml(tmp_path):
    path = tmp_path / "p.toml"
    path.write_text('size = [32, 48]\nresize = "lanczos"\ncrop = "none"\nchannel_order = "BGR"\nscale = 1.0\nstd = 2\n')
    found = load_preprocess(path)
    assert found == Preprocess(size=(32, 48), resize="lanczos", crop="none", channel_order="BGR", scale=1.0, std=(2.0,))
    path.write_text('preset = "imagenet"\nlayout = "nhwc"\n')
    assert load_preprocess(str(path)).mean == PRESETS["imagenet"].mean
    assert load_preprocess(path).layout == "NHWC"


def test_timm_json(tmp_path):
    path = tmp_path / "config.json"
    cfg = {
        "input_size": [3, 256, 256],
        "interpolation": "bicubic",
        "crop_pct": 0.9,
        "mean": [0, 0, 0],
        "std": [1, 1, 1],
        "crop_mode": "center",
    }
    path.write_text(json.dumps({"architecture": "mobilevit_xxs", "pretrained_cfg": cfg}))
    found = load_preprocess(path)
    assert (found.size, found.resize, found.crop_pct) == ((256, 256), "bicubic", 0.9)
    assert (found.mean, found.std, found.channel_order) == ((0, 0, 0), (1, 1, 1), "RGB")


def test_transformers_json(tmp_path, image):
    path = tmp_path / "preprocessor_config.json"
    mobilevit = {
        "crop_size": {"height": 256, "width": 256},
        "do_center_crop": True,
        "do_flip_channel_order": True,
        "do_rescale": True,
        "do_resize": True,
        "image_processor_type": "MobileViTImageProcessor",
        "resample": 2,
        "rescale_factor": 0.00392156862745098,
        "size": {"shortest_edge": 288},
    }
    path.write_text(json.dumps(mobilevit))
    preset = PRESETS["hf-mobilevit"].resolve(model_input(1, 3, 256, 256))
    found = load_preprocess(path).resolve(model_input(1, 3, 256, 256))
    np.testing.assert_allclose(found(image), preset(image), atol=1e-6)
    vit = {"do_normalize": True, "do_resize": True, "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "size": 224}
    path.write_text(json.dumps(vit))
    assert load_preprocess(path).mean == (0.5, 0.5, 0.5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("size = 0", "size must be"),
        ("size = [1, 2, 3]", "size must be"),
        ('resize = "cubic"', "resize must be one of nearest"),
        ("crop_pct = 1.5", "crop_pct must be above 0"),
        ('scale = "1"', "scale must be a number"),
        ("scale = -1.0", "scale must be positive"),
        ("mean = [1, 2]", "mean must have 1 or 3"),
        ("std = 0", "std must be positive"),
        ('mean = ["a"]', "mean must be a number"),
        ('channel_order = "RBG"', "channel_order must be one of"),
        ('layout = "HWC"', "layout must be one of"),
        ("siez = 3", "unknown key 'siez'; the keys are"),
        ('preset = "imagnet"', "unknown preset 'imagnet'; the presets are"),
        ("size = [48, 0]", "free width"),
        ("size =", "not a TOML file"),
    ],
)
def test_bad_settings_name_the_file_and_the_key(tmp_path, text, message):
    path = tmp_path / "p.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        load_preprocess(path)
    assert "p.toml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unknown_names_list_the_presets():
    with pytest.raises(ConfigError, match=r"imagnet: no such preset or file; the presets are imagenet"):
        load_preprocess("imagnet")


@pytest.mark.parametrize("text", ["[]", "{", '{"pretrained_cfg": {}}', '{"do_resize": true, "size": {"w": 1}}'])
def test_malformed_json(tmp_path, text):
    path = tmp_path / "c.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"c.json"):
        load_preprocess(path)


def test_what_contradicts_the_model():
    with pytest.raises(CalibrationError, match="the preprocess size is 256x256, but input 'x' is 1x3x224x224"):
        Preprocess(size=(256, 256)).resolve(model_input(1, 3, 224, 224))
    with pytest.raises(CalibrationError, match="has no fixed size"):
        Preprocess().resolve(model_input(1, 3, "h", None))
    with pytest.raises(CalibrationError, match="images need 4 dimensions"):
        Preprocess().resolve(model_input(1, 10))
    with pytest.raises(CalibrationError, match="in NHWC layout"):
        Preprocess(layout="NHWC").resolve(model_input(1, 3, 224, 224))
