"""Make `models/tutorial-cell` and `models/tutorial-rnn`, the two small layers that introductions to RNNs begin with.

Run `python examples/make_tutorial.py`; on one machine it writes the same bytes each time.

Untrained: their weights are PyTorch's default initialisation from a fixed seed.
"""

import torch
from torch import nn
from training import save


def main() -> None:
    torch.manual_seed(0)
    save(
        "tutorial-cell",
        nn.RNN(4, 2),
        "torch.nn.RNNCell(4, 2), untrained: one step at a time through /cell/step. The tutorial's input is a batch "
        "of 1, 3 steps of 4 values. Made by examples/make_tutorial.py.",
    )
    save(
        "tutorial-rnn",
        nn.RNN(4, 3),
        "torch.nn.RNN(4, 3), untrained: whole sequences through /rnn/forward. The tutorial's input is time-first "
        "(batch_first: false): 3 steps of a batch of 2, 4 values each. Made by examples/make_tutorial.py.",
    )


if __name__ == "__main__":
    main()
