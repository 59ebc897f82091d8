"""When a device's memory runs out."""

import gc

import torch


def is_out_of_memory(error: BaseException) -> bool:
    """Whether that is what an error says: of a GPU, or of the machine."""
    said = str(error)
    return isinstance(error, torch.OutOfMemoryError) or any(
        sign in said for sign in ("can't allocate memory", "out of memory")
    )


def give_back() -> None:
    """Give back what nobody holds any more; to be called when the error has been left behind."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
