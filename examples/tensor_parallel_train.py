"""PyTorch: tensor parallelism. The ranks of one data-parallel replica share one slot of the ring.

    prefetchd serve train.txt --batch-size 16 --image-size 64 --shuffle --dtype float32 --scale 0.00392 --name tensor
    torchrun --nproc-per-node 4 examples/tensor_parallel_train.py --daemon tensor --tensor-parallel 2

Every tensor-parallel rank needs the same batch. So `rank=` and `world_size=` are those of the data-parallel group, and
not those that torchrun sets. All ranks attach to one daemon, which decodes each batch once, into one slot.
Each rank has a part of the hidden layer; the parts of the output are summed over the tensor-parallel group.
"""

from __future__ import annotations

import argparse

import torch
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.nn.functional import all_reduce

import prefetchd.torch

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--daemon", required=True, help="name of the daemon that serves the data")
parser.add_argument("--tensor-parallel", type=int, default=2, help="ranks that share each batch (2)")
parser.add_argument("--epochs", type=int, default=4)
options = parser.parse_args()

distributed.init_process_group("gloo")
n_replicas = distributed.get_world_size() // options.tensor_parallel
mesh = init_device_mesh("cpu", (n_replicas, options.tensor_parallel), mesh_dim_names=("data", "tensor"))
data, tensor = mesh["data"], mesh["tensor"]

torch.manual_seed(mesh.get_local_rank("tensor"))  # alike in all replicas, another for each part of the layer
first = nn.Linear(3 * 64, 32 // options.tensor_parallel)
torch.manual_seed(0)
last = nn.Linear(32 // options.tensor_parallel, 8, bias=False)
parameters = [*first.parameters(), *last.parameters()]
optimizer = torch.optim.Adam(parameters, 0.02)

with prefetchd.torch.batches(daemon=options.daemon, rank=mesh.get_local_rank("data"), world_size=n_replicas) as loader:
    for epoch in range(options.epochs):
        total = 0.0
        for batch in loader:
            x, y = batch
            numbers = [None] * options.tensor_parallel
            distributed.all_gather_object(numbers, batch.index, group=tensor.get_group())
            assert numbers == [batch.index] * options.tensor_parallel  # the same batch, in the same slot
            rows = x.mean(dim=2).flatten(1)  # (rows, 3 * 64): the mean of each column of the image
            loss = nn.functional.cross_entropy(all_reduce(last(first(rows).relu()), group=tensor.get_group()), y)
            optimizer.zero_grad()
            # Each rank of the tensor-parallel group computes this loss, and the sum goes back to all of them.
            (loss / options.tensor_parallel).backward()
            for parameter in parameters:
                distributed.all_reduce(parameter.grad, group=data.get_group())
                parameter.grad /= n_replicas
            optimizer.step()
            total += loss.item()
        if distributed.get_rank() == 0:
            print(f"epoch {epoch}: loss {total / len(loader):.4f}", flush=True)

distributed.destroy_process_group()
