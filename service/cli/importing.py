"""`rnn-service import`."""

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from service.cli.options import FAILED, USAGE, console, fail, read_settings, setting
from service.errors import ModelFailed
from service.models.importing.refusal import CheckpointRefused, ChoiceNeeded, terminal_text
from service.spec import ChainLayer, ModelSpec, Nonlinearity, Pooling

if TYPE_CHECKING:
    from service.models.importing.model import CheckpointModel

MAX_LISTED = 24


def import_checkpoint(  # noqa: PLR0913  # each is an option of the command
    checkpoint: Annotated[
        Path,
        typer.Argument(
            metavar="CHECKPOINT", exists=True, dir_okay=False, help="Of torch.save, safetensors, .onnx, .keras, .h5."
        ),
    ],
    *,
    name: Annotated[str, typer.Option(help="What the model is called in requests.")],
    models: setting("models") = None,  # type: ignore[valid-type]  # made from Settings
    version: Annotated[str | None, typer.Option(metavar="N", help="Whole number; default: the next one.")] = None,
    layer: Annotated[str | None, typer.Option(metavar="PREFIX", help="Which recurrent layer, of several.")] = None,
    nonlinearity: Annotated[Nonlinearity | None, typer.Option(help="Of an RNN, which does not store it.")] = None,
    front: Annotated[str | None, typer.Option(metavar="LAYERS", help="Before it: emb, or scale:FILE.npz.")] = None,
    pooling: Annotated[Pooling, typer.Option(help="What the head reads: each step, or one vector of all.")] = "none",
    head: Annotated[str | None, typer.Option(metavar="LAYERS", help="For predictions: fc, or fc1,relu,fc2.")] = None,
    expect: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="safetensors: inputs, and the predictions that they must give."),
    ] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Overwrite --version, or the highest.")] = False,
    description: Annotated[str | None, typer.Option(help="For people: what it models, and how well.")] = None,
) -> None:
    """Import a recurrent network from a checkpoint, and verify that the service computes what the checkpoint does.

    Kind and sizes are read from the names and shapes of the arrays; --front, --pooling and --head say what is around
    the recurrent layer. Nothing in the file is executed. The model appears in the repository only after random input
    has gone through it as it will be served, beside torch.nn, onnx.reference or Keras' formulas with these weights.
    """
    # torch takes seconds to import
    from service.cli.verify import expect_sample, verify  # noqa: PLC0415
    from service.models.folder import NAME, NAME_RULE, VERSION  # noqa: PLC0415
    from service.models.importing.staging import staged  # noqa: PLC0415

    root = read_settings({"models": models}).models
    if not NAME.fullmatch(name):
        fail(f"--name: expected {NAME_RULE}, and got {name!r:.120}", USAGE)
    if version is not None and not VERSION.fullmatch(version):
        fail(f"--version: expected a whole number without leading zeros, and got {version!r:.120}", USAGE)
    stdout = console()
    try:
        found = _find(checkpoint, layer=layer, nonlinearity=nonlinearity, front=front, pooling=pooling, head=head)
        _show(stdout, checkpoint, found)
        place = staged(root, name, found.spec, found.arrays, version=version, description=description, replace=replace)
        with place as model:
            verdict = verify(model.root, name, found)
            if not verdict.passed:
                fail(f"not imported: {verdict}", FAILED)
            expected = expect_sample(model.root, name, expect) if expect else None
            folder = model.publish()
    except ChoiceNeeded as error:
        fail(str(error), USAGE)
    except (CheckpointRefused, ModelFailed) as error:
        fail(f"{checkpoint.name}: {error}", FAILED)
    except MemoryError:
        fail(f"{checkpoint.name}: the file asks for more memory than there is", FAILED)
    without = f" without {_listed(found.left_out)}" if found.left_out else ""
    stdout.print(Text(f"verified{without}: {verdict}"), style="yellow" if without else "green", soft_wrap=True)
    if expected:
        stdout.print(Text(f"expected: {expected} of {expect}"), style="green", soft_wrap=True)
    stdout.print(Text(f"imported: {folder}"), soft_wrap=True)


def _find(path: Path, **asked: Any) -> "CheckpointModel":
    # torch takes seconds to import, and onnx is optional
    from service.models.importing.keras import is_keras  # noqa: PLC0415
    from service.models.importing.state_dict import model_from_tensors  # noqa: PLC0415
    from service.models.importing.tensors import read_tensors  # noqa: PLC0415

    if path.suffix.lower() == ".onnx":
        if find_spec("onnx") is None:
            raise CheckpointRefused("reading .onnx files needs the onnx package: pip install onnx")
        from service.models.importing.onnx.model import model_from_onnx  # noqa: PLC0415

        _leave_out("an ONNX file", {option: asked.pop(option) for option in ("front", "pooling")})
        return model_from_onnx(path, **asked)
    if is_keras(path):
        if find_spec("h5py") is None:
            raise CheckpointRefused("reading .keras and .h5 files needs the h5py package: pip install h5py")
        from service.models.importing.keras.model import model_from_keras  # noqa: PLC0415

        _leave_out("a Keras file", asked)
        return model_from_keras(path)
    return model_from_tensors(read_tensors(path), file_bytes=path.stat().st_size, **asked)


def _leave_out(file: str, asked: Mapping[str, Any]) -> None:
    """Raise ChoiceNeeded for options that say what the file says itself."""
    if given := [f"--{option}" for option, value in asked.items() if value not in (None, "none")]:
        raise ChoiceNeeded(f"{file} says what its layers are: leave out {' and '.join(given)}")


def _show(stdout: Console, checkpoint: Path, found: "CheckpointModel") -> None:
    name = f"{terminal_text(found.layer, 120)}, " if found.layer else ""
    stdout.print(Text(f"found in {checkpoint.name}: {name}{_described(found.spec)}"), soft_wrap=True)
    table = Table("array", Column("in the file", overflow="fold"), "shape", "dtype")
    for array, (values, source) in list(found.stored.items())[:MAX_LISTED]:
        dtype = str(values.dtype).removeprefix("torch.")
        table.add_row(array, Text(terminal_text(source, 120)), str(tuple(values.shape)), dtype)
    if len(found.stored) > MAX_LISTED:
        table.add_row(f"and {len(found.stored) - MAX_LISTED} more")
    stdout.print(table)
    if found.ignored:
        stdout.print(Text(f"ignored: {_listed(found.ignored)}"), soft_wrap=True)
    for note in found.notes:
        stdout.print(Text(f"note: {terminal_text(note)}"), style="yellow", soft_wrap=True)


def _listed(names: Sequence[str]) -> str:
    more = [f"and {len(names) - MAX_LISTED} more"] if len(names) > MAX_LISTED else []
    return "; ".join([terminal_text(name, 200) for name in names[:MAX_LISTED]] + more)


def _described(spec: ModelSpec) -> str:
    parts = (
        f"kind rnn ({spec.nonlinearity})" if spec.kind == "rnn" else f"kind {spec.kind}",
        f"input_size {spec.input_size}, hidden_size {spec.hidden_size}, num_layers {spec.num_layers}",
        "bidirectional" if spec.bidirectional else "",
        f"proj_size {spec.proj_size}" if spec.proj_size else "",
        "" if spec.bias else "no bias",
        f"front {_layers(spec.front)}" if spec.front else "",
        f"pooling {spec.pooling}" if spec.pooling != "none" else "",
        f"head {_layers(spec.head)}" if spec.head[1:] else "",
        f"head with {spec.out_features} output{'s' * (spec.out_features != 1)}" if spec.out_features else "",
    )
    return ", ".join(filter(None, parts))


def _layers(layers: Sequence[ChainLayer]) -> str:
    return " → ".join(f"{layer.type} {layer.out_features}" for layer in layers)
