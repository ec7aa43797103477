"""The command `redimnet-jax gallery`: list, remove, import and export what a gallery holds."""

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from redimnet_jax.cli.command import Parser, closes_quietly
from redimnet_jax.cli.gallery_options import gallery_option
from redimnet_jax.cli.result import Result, run_command

HELP = """List, remove, import and export what a gallery holds.

  redimnet-jax gallery list --gallery=voices
  redimnet-jax gallery remove alice bob --gallery=voices
  redimnet-jax gallery import embeddings/vox2 --gallery=voices
  redimnet-jax gallery export embeddings/voices --gallery=voices

`import` enrols the speakers of a folder that `redimnet-jax embed` wrote, all or none; `export` writes such a folder.
`remove` leaves nothing of a model in any file.

exit codes: 0 done, 1 error, 2 wrong flag
"""


def _parser() -> Parser:
    parser = Parser("redimnet-jax gallery", description=HELP, formatter_class=argparse.RawDescriptionHelpFormatter)
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    shared = [gallery_option()]
    actions.add_parser("list", parents=shared, help="list all models")
    remove = actions.add_parser("remove", parents=shared, help="remove models")
    remove.add_argument("names", nargs="+", metavar="NAME", help="models to remove; all or none are")
    imports = actions.add_parser("import", parents=shared, help="enrol the speakers of a folder of embeddings")
    imports.add_argument("embeddings", type=Path, metavar="EMBEDDINGS", help="folder of `redimnet-jax embed`")
    imports.add_argument("--add", action="store_true", help="add to models that are enrolled already")
    export = actions.add_parser("export", parents=shared, help="write a folder of embeddings")
    export.add_argument("output", type=Path, metavar="OUTPUT", help="new folder")
    return parser


@closes_quietly
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command with its `arguments`, by default those of the process; return the exit code."""
    return run_command(_parser(), arguments, argparse.Namespace, _do)


def _do(given: argparse.Namespace) -> Result:
    started = time.perf_counter()
    content, lines = ACTIONS[given.action](given)
    return Result(content | {"seconds": {given.action: time.perf_counter() - started}}, lines)


def _list(given: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    import numpy as np

    from redimnet_jax.gallery.gallery import Gallery

    gallery = Gallery.open(given.gallery)
    counts = np.diff(gallery.bounds).tolist()
    models = dict(sorted(zip(gallery.models, counts, strict=True)))
    content = {"models": models, "utterances": gallery.utterances, "dim": gallery.weights.dim}
    lines = [f"{count:>6,}  {model}" for model, count in models.items()]
    total = f"models: {len(gallery):,}, utterances: {gallery.utterances:,}, dimensions: {gallery.weights.dim}"
    return content, [*lines, total]


def _remove(given: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    from redimnet_jax.gallery.changes import writing

    with writing(given.gallery) as writer:
        removed = writer.remove(given.names)
        size = writer.size
    models = sorted(set(given.names))
    line = f"{len(models):,} models with {removed:,} utterances are removed; {size['models']:,} models are left"
    return {"removed": models, "utterances": removed, "gallery": size}, [line]


def _import(given: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    from redimnet_jax.gallery import enrolment
    from redimnet_jax.gallery.changes import writing

    utterances, weights = enrolment.of_embeddings(given.embeddings)
    with writing(given.gallery, weights) as writer:
        writer.enrol(utterances, add=given.add)
        size = writer.size
    models = len(set(utterances.models))
    line = (
        f"enrolled in {given.gallery}: models: {models:,}, utterances: {len(utterances):,}; it has models: "
        f"{size['models']:,}, utterances: {size['utterances']:,}"
    )
    return {"models": models, "utterances": len(utterances), "gallery": size}, [line]


def _export(given: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    from redimnet_jax import buckets
    from redimnet_jax.gallery.export import export
    from redimnet_jax.gallery.gallery import Gallery

    gallery = Gallery.open(given.gallery)
    with buckets.new_folder(given.output) as folder:
        export(gallery, folder)
    line = f"{gallery.utterances:,} utterances of {len(gallery):,} models are in {given.output}"
    return {"models": len(gallery), "utterances": gallery.utterances}, [line]


ACTIONS: dict[str, Callable[[argparse.Namespace], tuple[dict[str, Any], list[str]]]] = {
    "list": _list,
    "remove": _remove,
    "import": _import,
    "export": _export,
}
