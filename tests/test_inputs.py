"""inputs.py: presets against numpy and torchvision, TOML settings, the INPUT argument, every way a file can be bad."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from l2caf_onnx.errors import InputError
from l2caf_onnx.inputs import Sample, find_samples, prepare, read_image
from l2caf_onnx.preprocess import PRESETS, preprocess_from
from l2caf_onnx.records import Shape, TensorInfo

MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
ORACLES = {
    "imagenet": lambda x: (x / 255 - MEAN) / STD,
    "tf": lambda x: x / 127.5 - 1,
    "lite": lambda x: (x - 127) / 128,
    "unit": lambda x: x / 255,
    "raw": lambda x: x,
}


def noise(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """A photo-like picture (H, W, 3): smooth, so that resampling has something to agree on."""
    coarse = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def save(path: Path, pixels: NDArray[Any], **options: Any) -> Path:
    Image.fromarray(pixels).save(path, **options)
    return path


def tensor(*shape: int | str, name: str = "image", dtype: str = "float32") -> TensorInfo:
    return TensorInfo(name, dtype, shape)


def read(
    specs: Sequence[str], inputs: Sequence[TensorInfo], preprocess: str | None, layout: str = "NCHW"
) -> list[Sample]:
    found = find_samples(specs, inputs, {i.name: layout for i in inputs}, preprocess)
    return [pending.read() for pending in found]


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("preset", PRESETS)
def test_preset_on_a_constant_colour(tmp_path: Path, preset: str, layout: str) -> None:
    colour = np.array([200, 30, 127], dtype=np.uint8)
    path = save(tmp_path / "a.png", np.broadcast_to(colour, (50, 90, 3)).copy())
    shape: Shape = ("N", 3, 28, 28) if layout == "NCHW" else ("N", 28, 28, 3)
    (sample,) = read([str(path)], [tensor(*shape)], preset, layout)
    array = sample.feeds["image"]
    assert array.shape == (1, *shape[1:])
    assert array.dtype == np.float32
    channels_last = array[0].transpose(1, 2, 0) if layout == "NCHW" else array[0]
    expected = np.broadcast_to(ORACLES[preset](colour.astype(np.float64)), (28, 28, 3))
    np.testing.assert_allclose(channels_last, expected, rtol=1e-6, atol=1e-6)
    assert sample.image is not None
    np.testing.assert_array_equal(np.asarray(sample.image), np.broadcast_to(colour, (28, 28, 3)))


@pytest.mark.parametrize("preset", ["unit", "raw"])
def test_own_size_is_kept_where_the_model_takes_any(tmp_path: Path, preset: str) -> None:
    pixels = noise(31, 45)
    (sample,) = read([str(save(tmp_path / "a.png", pixels))], [tensor("N", 3, "H", "W")], preset)
    expected = ORACLES[preset](pixels.astype(np.float64)).transpose(2, 0, 1)[None]
    np.testing.assert_allclose(sample.feeds["image"], expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("preset", ["imagenet", "tf", "lite"])
def test_224_where_the_model_takes_any_size(tmp_path: Path, preset: str) -> None:
    (sample,) = read([str(save(tmp_path / "a.png", noise(31, 45)))], [tensor("N", "C", "?", "?")], preset)
    assert sample.feeds["image"].shape == (1, 3, 224, 224)


@pytest.mark.parametrize("size", [(300, 451), (451, 300), (256, 256), (120, 90), (257, 700)])
@pytest.mark.parametrize("side", [224, 299, 32])
def test_resize_and_crop_as_torchvision(size: tuple[int, int], side: int) -> None:
    transforms = pytest.importorskip("torchvision.transforms")
    picture = Image.fromarray(noise(*size))
    bicubic = transforms.InterpolationMode.BICUBIC
    reference = transforms.Compose(
        [transforms.Resize(round(side * 256 / 224), interpolation=bicubic), transforms.CenterCrop(side)]
    )(picture)
    array, seen = prepare(picture, preprocess_from("raw", size=(side, side), layout="NHWC"))
    np.testing.assert_array_equal(np.asarray(seen), np.asarray(reference))
    np.testing.assert_array_equal(array[0], np.asarray(seen))


@pytest.mark.parametrize(("photo", "model"), [((300, 100), (64, 128)), ((100, 300), (64, 128)), ((60, 50), (128, 32))])
def test_a_model_that_is_not_square(photo: tuple[int, int], model: tuple[int, int]) -> None:
    """The picture, its rows and columns numbered by colour, keeps its proportions and its centre."""
    rows, columns = np.mgrid[0 : photo[0], 0 : photo[1]]
    ramp = np.stack([rows * 255 / photo[0], columns * 255 / photo[1], 0 * rows], -1).round().astype(np.uint8)
    array, seen = prepare(Image.fromarray(ramp), preprocess_from("raw", size=model, layout="NHWC"))
    assert (seen.height, seen.width) == model
    scale = max(model[0] * 256 / 224 / photo[0], model[1] * 256 / 224 / photo[1])
    inner = array[0, 2:-2, 2:-2]
    row, column = inner[..., 0] * photo[0] / 255, inner[..., 1] * photo[1] / 255
    for values, axis, along in ((row, 0, photo[0]), (column, 1, photo[1])):
        steps = np.diff(values.mean(1 - axis))
        assert np.mean(steps) == pytest.approx(1 / scale, rel=0.03)
        assert values.mean() == pytest.approx(along / 2 - 0.5, abs=1.0)


def test_a_panorama_that_would_be_blown_up_is_refused() -> None:
    with pytest.raises(InputError, match=r"\(1, 20000\) cannot be scaled to \(256, 5120000\)"):
        prepare(Image.new("RGB", (20_000, 1)), preprocess_from("imagenet", size=(224, 224), layout="NCHW"))


def test_grey_models_take_the_luma_and_the_mean_of_mean_and_std(tmp_path: Path) -> None:
    colour = np.array([200, 30, 127], dtype=np.uint8)
    path = save(tmp_path / "a.png", np.broadcast_to(colour, (28, 28, 3)).copy())
    (sample,) = read([str(path)], [tensor(1, 1, 28, 28)], "imagenet")
    luma = round(float(colour @ np.array([0.299, 0.587, 0.114])))
    assert sample.feeds["image"].shape == (1, 1, 28, 28)
    np.testing.assert_allclose(sample.feeds["image"], (luma / 255 - MEAN.mean()) / STD.mean(), rtol=1e-6, atol=0)
    assert sample.image is not None
    assert sample.image.getpixel((3, 3)) == (luma, luma, luma)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "uint8"])
def test_dtype_is_the_models_and_bytes_are_not_normalised(tmp_path: Path, dtype: str) -> None:
    path = save(tmp_path / "a.png", noise(9, 9))
    (sample,) = read([str(path)], [tensor(1, "H", "W", 3, dtype=dtype)], "raw", "NHWC")
    assert sample.feeds["image"].dtype == np.dtype(dtype)
    np.testing.assert_array_equal(sample.feeds["image"][0], noise(9, 9))
    with pytest.raises(InputError, match=r"takes bytes.*'imagenet'.*Use raw"):
        read([str(path)], [tensor(1, 3, 9, 9, dtype="uint8")], "imagenet")


def test_toml_states_everything(tmp_path: Path) -> None:
    toml = tmp_path / "p.toml"
    lines = ("size = 12", "crop = [8, 10]", 'layout = "NHWC"', 'channel_order = "BGR"', "mean = [1, 2, 3.5]", "std = 2")
    toml.write_text("\n".join([*lines, "range = [0, 255]"]))
    pixels = noise(12, 12)
    path = save(tmp_path / "a.png", pixels)
    (sample,) = read([str(path)], [tensor(1, 8, 10, 3)], str(toml), "NCHW")  # the layout that the file states wins
    expected = (pixels[2:10, 1:11, ::-1] - np.array([1, 2, 3.5])) / 2
    np.testing.assert_allclose(sample.feeds["image"][0], expected, rtol=1e-6, atol=1e-6)


def test_toml_left_out_keys_come_from_the_model(tmp_path: Path) -> None:
    (tmp_path / "p.toml").write_text("mean = 0.5\n")
    settings = preprocess_from(str(tmp_path / "p.toml"), size=(224, 448), layout="NHWC")
    assert (settings.size, settings.crop, settings.layout) == ((256, 512), (224, 448), "NHWC")
    assert (settings.range, settings.mean, settings.std) == ((0.0, 1.0), (0.5,) * 3, (1.0,) * 3)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("sise = 3", "setting sise = 3.*size and crop.*channel_order.*range"),
        ("size = 2.5", "setting size = 2.5"),
        ("size = true", "setting size = True"),
        ("crop = 0", "setting crop = 0"),
        ("crop = [1, 2, 3]", "setting crop"),
        ('layout = "CHW"', "setting layout = 'CHW'.*NCHW"),
        ("channel_order = 3", "setting channel_order"),
        ("mean = [1, 2]", "setting mean"),
        ('mean = ["a", "b", "c"]', "setting mean"),
        ("mean = nan", "setting mean"),
        ("std = [1, 0, 1]", "setting std"),
        ("range = 1", "setting range"),
        ("range = [2, 2]", "setting range"),
        ("size = 1" + "0" * 400, "setting size"),
        ("size = ", "not valid TOML"),
        ("size = 10\ncrop = 11", "does not suit size"),
        ("crop = 11", "input, which takes"),
    ],
)
def test_toml_mistakes_are_named(tmp_path: Path, line: str, said: str) -> None:
    toml, path = tmp_path / "p.toml", save(tmp_path / "a.png", noise(9, 9))
    toml.write_text(line)
    with pytest.raises(InputError, match=said):
        read([str(path)], [tensor(1, 3, 9, 9)], str(toml))


def test_an_unknown_preset_names_the_presets(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", noise(9, 9))
    with pytest.raises(InputError, match=r"no preset 'imagnet'.*imagenet, tf, lite, unit, raw"):
        read([str(path)], [tensor(1, 3, 9, 9)], "imagnet")
    with pytest.raises(InputError, match=r"--preprocess imagenet \| tf \| lite \| unit \| raw"):
        read([str(path)], [tensor(1, 3, 9, 9)], None)


def test_folder_lists_pictures_in_order_and_decodes_nothing(tmp_path: Path) -> None:
    for name in ("b.PNG", "a.jpeg", ".hidden.png", "note.txt", "c.webp"):
        (tmp_path / name).write_bytes(b"never decoded")
    (tmp_path / "d.png").mkdir()
    found = find_samples([str(tmp_path)], [tensor(1, 3, 9, 9)], {"image": "NCHW"}, "unit")
    assert [Path(s.name).name for s in found] == ["a.jpeg", "b.PNG", "c.webp"]


def test_named_files_are_zipped_and_single_ones_repeated(tmp_path: Path) -> None:
    inputs = [tensor(1, 3, 9, 9), tensor(1, 4, name="a=b:0"), tensor(1, 2, name="other")]
    photos = [str(save(tmp_path / f"{i}.png", noise(9, 9, i))) for i in range(2)]
    for name, shape in (("t", (1, 4)), ("u", (3, 4)), ("o", (1, 2))):
        np.save(tmp_path / f"{name}.npy", np.full(shape, ord(name), dtype=np.float32))
    specs = [*photos, f"a=b:0={tmp_path}/t.npy", f"a=b:0={tmp_path}/u.npy", f"other={tmp_path}/o.npy"]
    first, second = read(specs, inputs, "unit")
    assert first.feeds["a=b:0"].shape == (1, 4)
    assert second.feeds["a=b:0"].shape == (3, 4)  # as stored
    assert first.feeds["other"][0, 0] == second.feeds["other"][0, 0] == ord("o")
    assert [Path(p).name for p in second.name.split(", ")] == ["1.png", "u.npy", "o.npy"]
    with pytest.raises(InputError, match="2 for 'image', 2 for 'a=b:0', 0 for 'other'"):
        read(specs[:-1], inputs, "unit")
    with pytest.raises(InputError, match="2 for 'image', 3 for 'a=b:0'"):
        read([*specs, specs[2]], inputs, "unit")


def test_npz_is_keyed_by_inputs(tmp_path: Path) -> None:
    inputs = [tensor(1, 4, name="x"), tensor(1, 2, name="y/0")]
    arrays: dict[str, Any] = {"x": np.ones((5, 4)), "y/0": np.zeros((5, 2))}
    np.savez(tmp_path / "a.npz", **arrays)
    (sample,) = read([str(tmp_path / "a.npz")], inputs, None)
    assert {name: array.shape for name, array in sample.feeds.items()} == {"x": (5, 4), "y/0": (5, 2)}
    assert sample.image is None
    assert sample.name == str(tmp_path / "a.npz")
    np.savez(tmp_path / "b.npz", z=np.ones(3))
    with pytest.raises(InputError, match=r"holds 'z'.*'x' float32.*'y/0'"):
        read([str(tmp_path / "b.npz")], inputs, None)


def test_a_path_with_an_equals_sign_that_exists_is_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save(Path("image=1.png"), noise(9, 9))
    (sample,) = read(["image=1.png"], [tensor(1, 3, 9, 9)], "unit")
    assert sample.name == "image=1.png"


def test_a_name_and_path_together_too_long_for_a_file(tmp_path: Path) -> None:
    path, long = save(tmp_path / "a.png", noise(9, 9)), "n" * 250
    assert read([f"{long}={path}"], [tensor(1, 3, 9, 9, name=long)], "unit")
    with pytest.raises(InputError, match="cannot be looked up: File name too long"):
        read(["x" * 300], [tensor(1, 3, 9, 9)], "unit")


def test_which_input_takes_the_file(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", noise(9, 9))
    np.save(tmp_path / "a.npy", np.zeros((1, 3, 9, 9), np.float32))
    two = [tensor(1, 3, 9, 9, name="left"), tensor(1, 3, 9, 9, name="right")]
    with pytest.raises(InputError, match=r"take one: 'left', 'right'.*NAME=PATH"):
        read([str(path)], two, "unit")
    with pytest.raises(InputError, match=r"Which input takes this array.*'left'.*NAME=PATH"):
        read([str(tmp_path / "a.npy")], two, None)
    assert set(read([f"left={path}", f"right={tmp_path}/a.npy"], two, "unit")[0].feeds) == {"left", "right"}
    for other in (
        tensor(1, 5, 9, 9),
        tensor(1, 3, 9, 9, dtype="int64"),
        tensor(3, 9, 9),
        TensorInfo("image", "float32", None),
    ):
        with pytest.raises(InputError, match="take one: none"):
            read([f"image={path}"], [other], "unit")


def test_missing_files_name_those_like_them(tmp_path: Path) -> None:
    save(tmp_path / "chelsea.png", noise(9, 9))
    image = [tensor(1, 3, 9, 9)]
    with pytest.raises(InputError, match=r"no file or folder .*chelsae.png.*Did you mean 'chelsea.png'"):
        read([str(tmp_path / "chelsae.png")], image, "unit")
    with pytest.raises(InputError, match=r"Did you mean 'image=.*chelsea\.png'"):
        read([f"imaeg={tmp_path}/chelsea.png"], image, "unit")
    for spec in ("", "image=", f"{tmp_path}/no/such.png", os.devnull):
        with pytest.raises(InputError, match="no file or folder"):
            read([spec], image, "unit")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"holds no picture.*empty.*png"):
        read([str(tmp_path / "empty")], image, "unit")
    with pytest.raises(InputError, match="0 for 'image'"):
        read([], image, "unit")


@pytest.mark.parametrize("kind", ["text", "empty", "png", "jpeg", "float"])
def test_unreadable_pictures(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"hello" if kind == "text" else b"")
    if kind in ("png", "jpeg"):
        save(path, noise(64, 64), format=kind)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    if kind == "float":
        save(path, np.zeros((9, 9), np.float32), format="TIFF")
    with pytest.raises(InputError, match=r"a\.png"):
        read_image(path)


@pytest.mark.parametrize("factor", [1.01, 100])
def test_an_image_bomb_is_refused_by_its_header(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, factor: float) -> None:
    """Just above Pillow's limit it only warns, far above it raises; here both are refused before decoding."""
    path = save(tmp_path / "a.png", noise(100, 100))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", int(10_000 / factor))
    monkeypatch.setattr(Image.Image, "load", lambda _: pytest.fail("decoded"))
    with pytest.raises(InputError, match=f"more than {int(10_000 / factor):,} pixels"):
        read_image(path)


def test_exif_alpha_depth_palette_and_animation(tmp_path: Path) -> None:
    pixels, exif = noise(8, 12), Image.Exif()
    exif[274] = 6  # to be turned by a quarter, clockwise
    turned = read_image(save(tmp_path / "e.png", pixels, exif=exif))
    np.testing.assert_array_equal(np.asarray(turned), np.rot90(pixels, -1))
    alpha = np.array([[[10, 20, 30, 0], [10, 20, 30, 255], [0, 0, 0, 128]]], dtype=np.uint8)
    read_alpha = np.asarray(read_image(save(tmp_path / "a.png", alpha)))
    np.testing.assert_array_equal(read_alpha, [[[255] * 3, [10, 20, 30], [127] * 3]])
    deep = np.array([[0, 257, 32768, 65535]], dtype=np.uint16)
    for suffix in ("png", "tif"):
        shallow = np.asarray(read_image(save(tmp_path / f"d.{suffix}", deep)))
        np.testing.assert_array_equal(shallow[..., 0], [[0, 1, 128, 255]])
    palette = Image.fromarray(np.array([[0, 1]], dtype=np.uint8)).convert("P")
    palette.putpalette([9, 8, 7, 200, 100, 50])
    palette.save(tmp_path / "p.png", transparency=0)
    np.testing.assert_array_equal(np.asarray(read_image(tmp_path / "p.png")), [[[255] * 3, [200, 100, 50]]])
    frames = [Image.new("RGB", (4, 4), c) for c in ("red", "blue")]
    frames[0].save(tmp_path / "g.gif", save_all=True, append_images=frames[1:])
    assert read_image(tmp_path / "g.gif").getpixel((0, 0)) == (255, 0, 0)


def test_bad_arrays(tmp_path: Path) -> None:
    inputs = [tensor(1, 3, name="x")]
    np.save(tmp_path / "cut.npy", np.zeros((1, 3)))
    os.truncate(tmp_path / "cut.npy", 140)
    with zipfile.ZipFile(tmp_path / "plain.npz", "w") as archive:
        archive.writestr("x", "text")
    np.savez(tmp_path / "object.npz", allow_pickle=True, x=np.array([object], dtype=object))
    np.save(tmp_path / "object.npy", np.array([{}], dtype=object), allow_pickle=True)
    (tmp_path / "text.npy").write_text("hello")
    (tmp_path / "text.npz").write_text("hello")
    with zipfile.ZipFile(tmp_path / "other.npz", "w") as archive:
        archive.writestr("readme.txt", "text")
    for name, said in (
        ("plain.npz", "not an array"),
        ("object.npz", "pickles"),
        ("object.npy", "pickles"),
        ("text.npy", "numpy.save"),
        ("text.npz", "not an .npz"),
        ("cut.npy", "cannot be read"),
        ("other.npz", "holds 'readme.txt'"),
    ):
        with pytest.raises(InputError, match=said) as caught:
            read([str(tmp_path / name)], inputs, None)
        assert name in str(caught.value)
