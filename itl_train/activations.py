"""What the MLPs of a model read and add to the residual stream, collected on disk.

    itl transcoder collect --model MODEL --data DIR --layers 6 12 18 24 --out runs/activations

One forward pass of a text serves all layers. A collection is a folder: `collection.json` and, for
each layer, `read.npy` and `wrote.npy` of shape (n_tokens, d_model), which are written batch by
batch; an interrupted one goes on.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from itl_agents.sites import fingerprint, recorded, site_of
from itl_agents.transcoder import About
from itl_env.errors import ConfigError, ITLError
from itl_env.files import read_json, write_text
from itl_train.run_folder import RunFolder, first_entry

COLLECTION, DONE = "collection.json", "done.json"
FLUSH_EVERY = 20  # batches between two notes of how far a collection has come

Precision = Literal["float16", "float32"]


@dataclass(frozen=True)
class Collected:
    """What a collection is of.

    model, model_hash: see `About`. texts: a hash of the token ids. n_tokens: that were kept.
    """

    model: str
    model_hash: str
    layers: tuple[int, ...]
    normed: bool
    d_model: int
    n_tokens: int
    texts: str
    precision: Precision


class Activations:
    """A whole collection; raises ConfigError if the folder holds none."""

    def __init__(self, folder: Path) -> None:
        if not (folder / COLLECTION).is_file():
            raise ConfigError(
                f"{folder} holds no activations; `itl transcoder collect` makes some."
            )
        given = read_json(folder / COLLECTION, "Collect it anew.")
        try:
            self.about = Collected(**{**given, "layers": tuple(given["layers"])})
        except (KeyError, TypeError):
            raise ConfigError(
                f"{folder / COLLECTION} is damaged: it does not say what was collected. Collect it "
                "anew."
            ) from None
        self.folder = folder
        if not _done(folder).get("whole"):
            raise ConfigError(f"{folder} is not whole; give its command again, and it goes on.")

    def read(self, layer: int) -> Tensor:
        """What the layer's MLP reads, (n_tokens, d_model), on disk."""
        return self._array(layer, "read")

    def wrote(self, layer: int) -> Tensor:
        """What the layer's MLP adds to the residual stream, (n_tokens, d_model), on disk."""
        return self._array(layer, "wrote")

    def of_layer(self, layer: int) -> About:
        """What a transcoder trained on a layer is of; raises ConfigError if there is no such."""
        self._check(layer)
        of = self.about
        return About(of.model, of.model_hash, layer, of.normed)

    def _check(self, layer: int) -> None:
        if layer not in self.about.layers:
            there = ", ".join(map(str, self.about.layers))
            raise ConfigError(f"{self.folder} holds no layer {layer}; there is {there}.")

    def _array(self, layer: int, name: str) -> Tensor:
        self._check(layer)
        file = _file(self.folder, layer, name)
        try:
            # Private to this process: nothing is written back.
            found = np.load(file, mmap_mode="c")
        except (OSError, ValueError) as error:
            raise ITLError(f"Cannot read {file}: {error}; collect it anew.") from None
        return torch.from_numpy(found)


@torch.inference_mode()
def collect(
    model: PreTrainedModel,
    texts: Sequence[Sequence[int]],
    layers: Sequence[int],
    out: Path,
    *,
    name: str = "",
    skip_ids: Sequence[int] = (),
    normed: bool = True,
    precision: Precision = "float16",
    batch_tokens: int = 4_096,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Activations:
    """Run texts through a model and keep what passes the sites of its layers.

    texts: token ids. skip_ids: tokens that are not kept, by which texts begin. normed: whether what
    is read is divided by its root mean square. batch_tokens: of a forward pass, with padding: what
    is held in memory at once. on_progress: called with batches done and in all.

    Raises ConfigError for layers that the model has not, or a folder of another collection, and
    ITLError for activations that `precision` cannot hold.
    """
    sites = [site_of(model, layer, normed=normed) for layer in sorted(set(layers))]
    skipped = torch.tensor(list(skip_ids), dtype=torch.long)
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    batches = list(batches_of(texts, order, batch_tokens))
    kept = [kept_of([texts[i] for i in batch], skipped) for batch in batches]
    starts = np.cumsum([0, *(int(mask.sum()) for mask in kept)])
    about = Collected(
        model=name,
        model_hash=fingerprint(model),
        layers=tuple(site.layer for site in sites),
        normed=normed,
        d_model=int(model.config.get_text_config().hidden_size),
        n_tokens=int(starts[-1]),
        texts=_digest(texts, skip_ids, batch_tokens),
        precision=precision,
    )
    if not sites or not about.n_tokens:
        raise ConfigError("There is nothing to collect: name layers, and texts with tokens.")
    done = _begin(out, about)
    largest = torch.finfo(getattr(torch, precision)).max
    with RunFolder(out).alone(), recorded(model, sites) as seen:
        arrays = {
            (site.layer, which): _array(out, site.layer, which, about)
            for site in sites
            for which in ("read", "wrote")
        }
        for place in range(done, len(batches)):
            run_blocks(model, [texts[i] for i in batches[place]])
            for site in sites:
                passed = seen[site.layer]
                for which, values in (("read", passed.read), ("wrote", passed.wrote)):
                    rows = values[kept[place].to(values.device)].cpu()
                    if not bool(rows.isfinite().all()):
                        raise ITLError(f"At layer {site.layer} numbers are not finite.")
                    if bool((rows.abs() > largest).any()):
                        raise ITLError(
                            f"At layer {site.layer} numbers do not fit into {precision}; take "
                            "float32."
                        )
                    arrays[site.layer, which][starts[place] : starts[place + 1]] = rows.numpy()
            last = place + 1 == len(batches)
            if last or (place + 1) % FLUSH_EVERY == 0:
                for array in arrays.values():
                    array.flush()
                _note(out, {"batches": place + 1, "whole": last})
            on_progress(place + 1, len(batches))
    return Activations(out)


def _begin(out: Path, about: Collected) -> int:
    """Make the files, unless they are there; returns how many batches are done."""
    wanted = json.loads(json.dumps(asdict(about)))
    if (out / COLLECTION).exists():
        there = read_json(out / COLLECTION, "Remove the folder, and collect it anew.")
        for key, value in wanted.items():
            if there.get(key) != value:
                raise ConfigError(
                    f"{out} holds a collection with {key}={there.get(key)!r}, not {value!r}; name "
                    "another folder."
                )
        return int(_done(out).get("batches", 0))
    if (entry := first_entry(out)) is not None:
        raise ConfigError(f"{out} holds {entry!r}, but no collection; name a new folder.")
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / COLLECTION, json.dumps(wanted, indent=1) + "\n")
    return 0


def _array(out: Path, layer: int, which: str, about: Collected) -> Any:
    """The file of a layer, to be written to; it is made if it is not there."""
    file = _file(out, layer, which)
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_name(f".{file.name}.partial")
        shape = (about.n_tokens, about.d_model)
        np.lib.format.open_memmap(partial, mode="w+", dtype=about.precision, shape=shape)
        partial.replace(file)
    return np.load(file, mmap_mode="r+")


def _file(folder: Path, layer: int, which: str) -> Path:
    return folder / f"layer-{layer:02d}" / f"{which}.npy"


def _done(folder: Path) -> dict[str, Any]:
    if not (folder / DONE).exists():
        return {}
    found: dict[str, Any] = read_json(folder / DONE, "Remove it, and all is collected anew.")
    return found


def _note(folder: Path, done: dict[str, Any]) -> None:
    write_text(folder / DONE, json.dumps(done) + "\n")


def batches_of(
    texts: Sequence[Sequence[int]], order: Sequence[int], batch_tokens: int
) -> Iterator[list[int]]:
    """Texts side by side, shortest first, of at most so many tokens with padding."""
    batch: list[int] = []
    for i in order:
        if batch and (len(batch) + 1) * len(texts[i]) > batch_tokens:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def padded(texts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Ids with padding on the right, and which of them are of a text."""
    width = max(map(len, texts))
    ids = torch.tensor([[*text, *[0] * (width - len(text))] for text in texts])
    mask = torch.tensor([[1] * len(text) + [0] * (width - len(text)) for text in texts])
    return ids, mask


def run_blocks(model: PreTrainedModel, texts: Sequence[Sequence[int]]) -> None:
    """Run token ids side by side through a model's blocks, for what hooks see there."""
    ids, mask = (each.to(model.device) for each in padded(texts))
    model.base_model(input_ids=ids, attention_mask=mask, use_cache=False)


def kept_of(texts: Sequence[Sequence[int]], skipped: Tensor) -> Tensor:
    """Which tokens of a padded batch are kept."""
    ids, mask = padded(texts)
    return mask.bool() & ~torch.isin(ids, skipped)


def _digest(texts: Sequence[Sequence[int]], skip_ids: Sequence[int], batch_tokens: int) -> str:
    found = hashlib.blake2b(digest_size=16)
    found.update(repr((sorted(skip_ids), batch_tokens)).encode())
    for text in texts:
        found.update(np.asarray([len(text), *text], dtype=np.int64).tobytes())
    return found.hexdigest()
