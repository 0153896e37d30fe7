"""`rnn-service import`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from service.cli.options import read_settings, setting
from service.cli.output import FAILED, USAGE, console, fail
from service.errors import ModelFailed
from service.models.printable import printable
from service.spec import ModelSpec

if TYPE_CHECKING:
    from service.cli.verify import Verdict
    from service.models.importing.found import Found

MAX_LISTED = 24


def import_checkpoint(  # noqa: PLR0913  # each is an option of the command
    checkpoint: Annotated[
        Path,
        typer.Argument(
            metavar="CHECKPOINT",
            exists=True,
            dir_okay=False,
            readable=True,
            help=".pt, .pth, .safetensors or .onnx.",
        ),
    ],
    *,
    name: Annotated[str, typer.Option(help="What the model is called in requests.")],
    models: setting("models") = None,  # type: ignore[valid-type]  # made from Settings
    version: Annotated[
        str | None, typer.Option(help="A whole number; left out: one more than the highest.", metavar="N")
    ] = None,
    layer: Annotated[
        str | None, typer.Option(help="Which recurrent layer, if there are several: its prefix.", metavar="PREFIX")
    ] = None,
    nonlinearity: Annotated[
        Literal["tanh", "relu"] | None, typer.Option(help="Of an RNN or RNNCell, which does not store it.")
    ] = None,
    head: Annotated[
        str | None, typer.Option(help="A linear layer over the outputs, to serve as predictions.", metavar="PREFIX")
    ] = None,
    description: Annotated[str | None, typer.Option(help="For people: what it models, and how well.")] = None,
) -> None:
    """Import a recurrent layer from a checkpoint, and verify that it computes what it did there.

    Kind and sizes are read from the names and shapes of the arrays. Nothing in the file is executed. The model appears
    in the repository only after random input has gone through it as it will be served, beside torch.nn (for ONNX,
    onnx.reference) with the checkpoint's own weights.
    """
    # torch takes seconds to import
    from service.cli.verify import verify  # noqa: PLC0415
    from service.models.importing.found import CheckpointRefused, ChoiceNeeded  # noqa: PLC0415
    from service.models.write import staged  # noqa: PLC0415

    root = read_settings({"models": models}).models
    _check_names(name, version)
    stdout = console()
    try:
        found = _find(checkpoint, layer, nonlinearity, head)
        _show(stdout, checkpoint, found)
        with staged(root, name, found.spec, found.arrays, version=version, description=description) as model:
            verdict = verify(model.root, model.name, model.version, found)
            if not verdict.passed:
                fail(f"not imported: {_measured(verdict, found)}", FAILED)
            folder = model.publish()
    except ChoiceNeeded as error:
        fail(str(error), USAGE)
    except (CheckpointRefused, ModelFailed) as error:
        fail(f"{checkpoint.name}: {error}", FAILED)
    except MemoryError:
        fail(f"{checkpoint.name}: the file asks for more memory than there is", FAILED)
    stdout.print(Text(f"verified: {_measured(verdict, found)}"), style="green", soft_wrap=True)
    stdout.print(Text(f"imported: {folder}"), soft_wrap=True)


def _check_names(name: str, version: str | None) -> None:
    from service.models.folder import NAME, VERSION  # noqa: PLC0415  # torch takes seconds to import

    if not NAME.fullmatch(name):
        fail(f"--name: expected {NAME.pattern}, and got {name!r:.120}", USAGE)
    if version is not None and not VERSION.fullmatch(version):
        fail(f"--version: expected a whole number without leading zeros, and got {version!r:.120}", USAGE)


def _find(
    checkpoint: Path, layer: str | None, nonlinearity: Literal["tanh", "relu"] | None, head: str | None
) -> "Found":
    # torch takes seconds to import, and onnx is optional
    from service.models.importing.checkpoint import TORCH_SUFFIXES, read_tensors  # noqa: PLC0415
    from service.models.importing.found import ChoiceNeeded  # noqa: PLC0415
    from service.models.importing.onnx.checkpoint import find_onnx_layer  # noqa: PLC0415
    from service.models.importing.state_dict import find_layer  # noqa: PLC0415

    if checkpoint.suffix == ".onnx":
        return find_onnx_layer(checkpoint, layer=layer, nonlinearity=nonlinearity, head=head)
    known = (*TORCH_SUFFIXES, ".safetensors", ".onnx")
    if checkpoint.suffix not in known:
        raise ChoiceNeeded(
            f"CHECKPOINT: expected a file that ends in {', '.join(known)}, and got {checkpoint.name!r:.120}"
        )
    return find_layer(
        read_tensors(checkpoint),
        layer=layer,
        nonlinearity=nonlinearity,
        head=head,
        file_bytes=checkpoint.stat().st_size,
    )


def _show(stdout: Console, checkpoint: Path, found: "Found") -> None:
    from service.models.importing.state_dict import TOP  # noqa: PLC0415  # torch takes seconds to import

    name = "" if found.layer == TOP else f"{printable(found.layer)}, "
    stdout.print(Text(f"found in {checkpoint.name}: {name}{_described(found.spec)}"), soft_wrap=True)
    table = Table("array", Column("in the file", overflow="fold"), "shape", "dtype")
    for array in list(found.arrays)[:MAX_LISTED]:
        tensor = found.arrays[array]
        source = printable(found.sources.get(array, "(zeros)"))
        table.add_row(array, Text(source), str(tuple(tensor.shape)), str(tensor.dtype).removeprefix("torch."))
    if len(found.arrays) > MAX_LISTED:
        table.add_row(f"and {len(found.arrays) - MAX_LISTED} more", "", "", "")
    stdout.print(table)
    if found.ignored:
        stdout.print(Text(f"ignored: {'; '.join(found.ignored[:MAX_LISTED])}"), soft_wrap=True, end="")
        more = len(found.ignored) - MAX_LISTED
        stdout.print(f"; and {more} more" if more > 0 else "")
    for note in found.notes:
        stdout.print(Text(f"note: {note}"), style="yellow", soft_wrap=True)


def _described(spec: ModelSpec) -> str:
    sizes = f"input_size {spec.input_size}, hidden_size {spec.hidden_size}, num_layers {spec.num_layers}"
    return ", ".join(
        part
        for part, there in (
            (f"kind rnn ({spec.nonlinearity})" if spec.kind == "rnn" else f"kind {spec.kind}", True),
            (sizes, True),
            ("bidirectional", spec.bidirectional),
            (f"proj_size {spec.proj_size}", spec.proj_size),
            ("no bias", not spec.bias),
            (f"head of {spec.out_features}", spec.out_features),
        )
        if there
    )


def _measured(verdict: "Verdict", found: "Found") -> str:
    from service.cli.verify import LENGTHS  # noqa: PLC0415  # torch takes seconds to import

    steps = f"{', '.join(map(str, LENGTHS[:-1]))} and {LENGTHS[-1]}"
    return (
        f"max abs error {verdict.error:.1e} (allowed {verdict.allowed:.1e}, largest value {verdict.largest:.3g}) "
        f"against {found.reference_name} in float64, over random sequences of {steps} steps"
    )
