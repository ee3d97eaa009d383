"""The order in which training reads a packed folder: epoch after epoch, looked up by position.

The whole state of reading is one integer: how many sequences were consumed. Position p is sequence
``p % num_sequences`` of epoch ``p // num_sequences``; the first epoch runs in stored order (which follows the
mixture's weights at every prefix), each later one in a permutation that is a pure function of (seed, epoch):
a Feistel network with cycle walking (Black and Rogaway 2002), so that a look-up costs no memory and no pass
over the data. The global batch therefore does not depend on the number of ranks, workers, or restarts.
"""

from hashlib import blake2b

FEISTEL_ROUNDS = 6


def permute(index: int, length: int, key: bytes) -> int:
    """Image of ``index`` under a pseudo-random permutation of ``range(length)`` chosen by ``key``.

    The network works on the smallest even number of bits that holds ``length``; results outside the range
    are sent through again, fewer than four times on average.
    """
    if not 0 <= index < length:
        raise IndexError(f"index {index} is outside 0..{length - 1}")
    half_bits = max(1, (max(length - 1, 1).bit_length() + 1) // 2)
    mask = (1 << half_bits) - 1
    while True:
        left, right = index >> half_bits, index & mask
        for round_number in range(FEISTEL_ROUNDS):
            message = round_number.to_bytes(1, "little") + right.to_bytes(8, "little")
            digest = blake2b(message, key=key, digest_size=8).digest()
            left, right = right, left ^ (int.from_bytes(digest, "little") & mask)
        index = left << half_bits | right
        if index < length:
            return index


def stored_index(position: int, num_sequences: int, seed: int) -> int:
    """Which stored sequence stands at ``position`` of the endless stream."""
    epoch, index = divmod(position, num_sequences)
    if epoch == 0:
        return index
    return permute(index, num_sequences, f"{seed} {epoch}".encode())
