"""Whether there is a hub to ask: without one, its clients try again for half a minute."""

import threading
from functools import cache

_PATIENCE = 4.0
"""Seconds to wait for a first answer of the hub."""


@cache
def hub_answers() -> bool:
    """Whether the hub answers at all, asked once a process; False where it is switched off."""
    from huggingface_hub import constants, get_session

    if constants.HF_HUB_OFFLINE:
        return False
    answers = []

    def ask() -> None:
        try:
            answers.append(get_session().head(constants.ENDPOINT, timeout=_PATIENCE))
        except Exception:
            # Whatever it is, nobody answered.
            return

    # Looking up its address may hang, hence the thread.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_PATIENCE)
    return bool(answers)
