"""Other libraries' bars, log lines and warnings, silenced for one block and put back as they were."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator


@contextlib.contextmanager
def quiet(*, stderr: bool = False) -> Iterator[None]:
    """No progress bars, log lines or warnings of transformers and huggingface_hub inside the block.

    Verbosity and bars are put back at the end, also after an exception. With `stderr=True` Python's own stderr is
    swallowed too, for code that draws a bar nobody can switch off (the older GGUF reader).
    """
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
    from transformers.utils import logging as hf_logging

    verbosity = hf_logging.get_verbosity()
    bars = hf_logging.is_progress_bar_enabled()
    hub_bars = not are_progress_bars_disabled()
    with contextlib.ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        if stderr:
            stack.enter_context(contextlib.redirect_stderr(io.StringIO()))
        try:
            hf_logging.set_verbosity_error()
            hf_logging.disable_progress_bar()  # the hub's bars too
            yield
        finally:
            hf_logging.set_verbosity(verbosity)
            if bars:
                hf_logging.enable_progress_bar()
            if hub_bars:
                enable_progress_bars()
            else:
                disable_progress_bars()
