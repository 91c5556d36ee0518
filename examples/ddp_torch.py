"""Train on PyTorch in several processes, with `DistributedDataParallel`.

    python examples/ddp_torch.py

starts two processes on this machine; `torchrun --nproc-per-node 2 examples/ddp_torch.py` does so,
too, on one machine or many. Each prints a digest of its masks of rows that are the same for both:
they differ; and of its weights at the end: they are equal.
"""

import argparse
import os
import sys

os.environ["KERAS_BACKEND"] = "torch"
os.environ.setdefault("KERAS_TORCH_DEVICE", "cpu")

import loopback


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", help="a .npz file for the weights, before and after")
    arguments = parser.parse_args()
    if "RANK" in os.environ:
        return train(arguments.output)
    host, port = loopback.free_addresses(1)[0].split(":")
    common = {"MASTER_ADDR": host, "MASTER_PORT": port, "WORLD_SIZE": "2"}
    return loopback.run_here([common | {"RANK": str(rank)} for rank in range(2)])


def train(output):
    import torch
    import toy
    from torch import distributed

    from keras_dynmask.objective import token_losses

    distributed.init_process_group("gloo")  # before the first step: masks depend on the rank
    rank, processes = distributed.get_rank(), distributed.get_world_size()
    model = toy.build_model()
    parallel = torch.nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.SGD(parallel.parameters(), lr=0.5, momentum=0.9)

    def step(token_ids):
        masked = parallel(torch.from_numpy(token_ids), training=True)
        losses, weights = token_losses(masked["logits"], masked["mask_ids"]), masked["mask_weights"]
        selected = weights.sum()
        distributed.all_reduce(selected)
        # A part of the loss: divided by what all processes selected. The wrapper averages the
        # gradients of the parts where they ought to be added up.
        part = (losses * weights).sum() / selected
        optimizer.zero_grad()
        (part * processes).backward()
        optimizer.step()
        loss = part.detach()
        distributed.all_reduce(loss)
        return loss, masked["mask_positions"]

    before = model.get_weights()
    results = [step(token_ids) for token_ids in toy.halves(rank)]
    losses, masks = zip(*results, strict=True)
    toy.report(rank, losses, masks[0], before, model.get_weights(), output)
    # Until nobody holds a tensor of the last reduction. Without it a process now and then waits for
    # ever: it ends its group while it holds Python's lock, which that tensor's end needs, too.
    distributed.barrier()
    distributed.destroy_process_group()


if __name__ == "__main__":
    sys.exit(main())
