"""The Hugging Face hub: asked once whether it answers, and its cache alone where it does not.

Its own clients try again for half a minute a file; the errors here come at once, in one line.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from lpe.errors import InputError
from lpe.extras import needs

SECONDS = 5.0
"""Seconds that the hub has to answer at all."""


def hub_answers() -> bool:
    """Tell whether the hub can be reached and asked (HF_HUB_OFFLINE), by one request."""
    needs("huggingface_hub")

    from huggingface_hub import constants, get_session

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        get_session().head(constants.ENDPOINT, timeout=SECONDS)
    except Exception:  # which one depends on the client that the hub's library has under it
        return False
    return True


@contextmanager
def hub_or_cache() -> Iterator[bool]:
    """Use the hub, or its cache alone if it does not answer, also for data sets; yield whether it answers."""
    needs("huggingface_hub")

    from huggingface_hub import constants

    answers = hub_answers()
    # The library of data sets has a switch of its own, made when it is imported.
    switches = [constants, *filter(None, [sys.modules.get("datasets.config")])]
    before = [switch.HF_HUB_OFFLINE for switch in switches]
    for switch in switches:
        switch.HF_HUB_OFFLINE = not answers  # type: ignore[attr-defined]
    try:
        yield answers
    finally:
        for switch, was in zip(switches, before, strict=True):
            switch.HF_HUB_OFFLINE = was  # type: ignore[attr-defined]


def hub_file(repository: str, names: Sequence[str]) -> Path:
    """Return a file of a hub's repository: from the local cache, else fetched into it.

    Args:
        repository: such as "timm/resnet50.a1_in1k". names: of the file; the first that is there is taken.

    Raises:
        InputError: it is not in the cache, and the hub does not give it.
    """
    needs("huggingface_hub")

    from huggingface_hub import constants, get_session, hf_hub_download, hf_hub_url, try_to_load_from_cache

    for name in names:
        cached = try_to_load_from_cache(repository, name)
        if isinstance(cached, str):
            return Path(cached)
    why = f"{constants.ENDPOINT} cannot be reached"
    for name in names:
        try:
            # Without a token, a private or gated repository answers 401 or 403.
            found = get_session().head(hf_hub_url(repository, name), timeout=SECONDS)
            if found.status_code < 400:
                return Path(hf_hub_download(repository, name))
            why = f"{constants.ENDPOINT} answers {found.status_code}"
        except Exception:  # of the hub's client, of what it builds on, of the network
            continue
    raise InputError(
        f"{names[0]} of the hub repository {repository} is not in the cache {constants.HF_HUB_CACHE}, and "
        f"{why}; run `hf download {repository} {names[0]}` where it can be and bring the cache here, or give "
        "the file as the checkpoint"
    )
