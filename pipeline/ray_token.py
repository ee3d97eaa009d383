"""Settles how Ray authenticates, before Ray is imported: it reads this from the environment only once.

A private cluster (no RAY_ADDRESS) gets a token that only this process and its children know. Ray's own
default would leave a token in the home folder, which makes later clusters of the user demand it from clients
that do not send it. Where RAY_ADDRESS or RAY_AUTH_MODE is set, the cluster's rule is not ours to change.
"""

import os
import secrets
import sys


def settle_authentication() -> None:
    """Make a token for a private cluster, unless the user chose otherwise or Ray is imported already."""
    if "ray" in sys.modules or {"RAY_ADDRESS", "RAY_AUTH_MODE"} & os.environ.keys():
        return
    os.environ["RAY_AUTH_MODE"] = "token"
    os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
