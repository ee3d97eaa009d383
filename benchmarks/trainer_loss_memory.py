"""Peak memory and processor time of the loss of 4,096 ids over a vocabulary of 40,320: in chunks, as the
trainer does, against all logits at once.

    python benchmarks/trainer_loss_memory.py

Each contestant runs in a process of its own; what is reported is how far its peak rose over the inputs.
"""

import json
import resource
import subprocess
import sys
import time

import torch
import torch.nn.functional as F

from trainer.loss import chunk_length, cross_entropy_by_id

NUM_IDS, WIDTH, VOCABULARY = 4096, 512, 40_320


def measure(contestant: str) -> None:
    """One forward and backward; prints the rise of the peak in MiB, processor seconds and the loss."""
    torch.manual_seed(0)
    hidden = torch.randn(1, NUM_IDS, WIDTH, requires_grad=True)
    weight = (torch.randn(VOCABULARY, WIDTH) / 20).requires_grad_()
    hidden.grad, weight.grad = torch.zeros_like(hidden), torch.zeros_like(weight)
    labels = torch.randint(0, VOCABULARY, (1, NUM_IDS))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.process_time()
    if contestant == "plain":
        loss = F.cross_entropy((hidden @ weight.T)[0], labels[0])
    else:
        chunk_ids = int(contestant.removeprefix("chunks of "))
        loss = cross_entropy_by_id(hidden, weight, labels, chunk_ids).sum() / NUM_IDS
    loss.backward()
    seconds = time.process_time() - started
    mebibytes = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    record = {"loss": contestant, "peak_mib": round(mebibytes), "seconds": round(seconds, 2)}
    print(json.dumps(record | {"value": round(float(loss.detach()), 6)}))


def main() -> None:
    if len(sys.argv) > 1:
        measure(sys.argv[1])
        return
    for contestant in ("plain", f"chunks of {chunk_length(VOCABULARY, 'cpu')}", "chunks of 512"):
        subprocess.run([sys.executable, __file__, contestant], check=True)


if __name__ == "__main__":
    main()
