"""SAF in a loop of your own: two lines more. Run it: python examples/plain_loop.py"""

import torch
from sklearn.datasets import load_digits
from torch import nn

from legato.flatness import SAF

EPOCHS, BATCH = 12, 64
pixels, labels = load_digits(return_X_y=True)
inputs, target = torch.tensor(pixels / 16, dtype=torch.float32), torch.tensor(labels)

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
criterion = nn.CrossEntropyLoss()
saf = SAF(num_samples=len(inputs), num_classes=10, lam=1.0, start=3)

for _ in saf.epochs(EPOCHS):
    for index in torch.randperm(len(inputs)).split(BATCH):
        logits = model(inputs[index])
        loss = criterion(logits, target[index]) + saf(logits, index)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

accuracy = (model(inputs).argmax(1) == target).double().mean()
print(f"training accuracy {accuracy:.3f}")
