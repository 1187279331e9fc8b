"""SAF in several processes with Accelerate: each has a fixed share of the rows, and the record of its own share only.

Run it: torchrun --nproc-per-node 2 examples/accelerate_torchrun.py
"""

import torch
from accelerate import Accelerator
from sklearn.datasets import load_digits
from torch import nn

from legato.flatness import SAF, TrajectorySampler

EPOCHS, BATCH = 12, 32
accelerator = Accelerator(cpu=not torch.cuda.is_available())
pixels, labels = load_digits(return_X_y=True)
inputs, target = torch.tensor(pixels / 16, dtype=torch.float32), torch.tensor(labels)
sampler = TrajectorySampler(len(inputs), rank=accelerator.process_index, world_size=accelerator.num_processes, seed=0)

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
criterion = nn.CrossEntropyLoss()
model, optimizer = accelerator.prepare(model, optimizer)  # the loader is not: its rows are shared out already
saf = SAF(num_samples=len(inputs), num_classes=10, lam=1.0, start=3, rows=sampler.rows)

for epoch in saf.epochs(EPOCHS):
    sampler.set_epoch(epoch)
    for index in torch.tensor(list(sampler)).split(BATCH):
        logits = model(inputs[index].to(accelerator.device))
        loss = criterion(logits, target[index].to(accelerator.device)) + saf(logits, index)
        optimizer.zero_grad()
        accelerator.backward(loss)
        optimizer.step()

accuracy = (model(inputs.to(accelerator.device)).argmax(1).cpu() == target).double().mean()
accelerator.print(f"training accuracy {accuracy:.3f}")
