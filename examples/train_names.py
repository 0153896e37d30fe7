"""Train `models/names`: a character-level GRU that writes first names. About half a minute on one core.

Run `python examples/train_names.py`; on one machine it writes the same bytes each time. It needs the package `names`.

Letters: N names, T characters of the longest and its end, V tokens.
"""

import copy
import json
from collections import Counter
from importlib.resources import files

import numpy as np
import torch
from torch import Tensor, nn
from training import MODELS, save

END = "."  # begins and ends a name
VOCABULARY = END + "abcdefghijklmnopqrstuvwxyz"  # a character's place is its token id
PADDING = -1  # no target: past the end of a name

# Seeds: measured by running this script with other ones.
DESCRIPTION = """\
Writes first names, a character at a time: Embedding, GRU and a linear layer, as in PyTorch's tutorial on generating \
names. Vocabulary: {vocabulary}; a token id is a character's place in it (also in vocabulary.json beside this file). \
A name begins and ends with token 0, "{end}": send it and the first letters to /rnn/generate, with "stop": [0]. \
Example: "{end}mar". Predictions: logits of the next character. \
Data: the {count} different first names of at least two letters in the package names 0.3.0 (MIT licence; the lists \
are in the public domain, from the US census of 1990); a name counts once, however frequent it is. {train} names for \
training, {validation} to stop early, {test} for the test, chosen at random. \
Cross-entropy of the test names, in bits per character with the end: this model {bits:.2f}; counts of the two \
characters before, smoothed, {trigrams:.2f}; counts of one character before {bigrams:.2f}; of none {unigrams:.2f}. Of \
{written} names drawn at temperature 1, {known:.0%} are in the data and {new:.0%} are not; names of real people are \
among both. Seed 0; seeds 1 to 4 gave 2.73 to 2.76. Trained by examples/train_names.py."""


class Writer(nn.Module):
    """Token ids (N, T) give logits (N, T, V) of the next ones."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(len(VOCABULARY), 24)
        self.dropout = nn.Dropout(0.2)
        self.recurrent = nn.GRU(24, 96, batch_first=True)
        self.head = nn.Linear(96, len(VOCABULARY))

    def forward(self, tokens: Tensor) -> Tensor:
        outputs, _ = self.recurrent(self.dropout(self.embedding(tokens)))
        logits: Tensor = self.head(self.dropout(outputs))
        return logits


def first_names() -> list[str]:
    """The different first names of the package, in lower case and in order of the alphabet."""
    lines = [line for kind in ("female", "male") for line in files("names").joinpath(f"dist.{kind}.first").open()]
    names = {line.split()[0].lower() for line in lines}
    return sorted(name for name in names if len(name) > 1)


def pairs(names: list[str]) -> tuple[Tensor, Tensor]:
    """Inputs and targets (N, T): each character, from the start on, and the one after it."""
    inputs = torch.zeros(len(names), 1 + max(map(len, names)), dtype=torch.long)
    targets = torch.full_like(inputs, PADDING)
    for row, name in enumerate(names):
        ids = torch.tensor([VOCABULARY.index(character) for character in name])
        inputs[row, 1 : 1 + len(ids)] = ids
        targets[row, : len(ids)] = ids
        targets[row, len(ids)] = 0
    return inputs, targets


def loss(model: Writer, inputs: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy of the targets in nats."""
    return nn.functional.cross_entropy(model(inputs).flatten(0, 1), targets.flatten(), ignore_index=PADDING)


def fit(model: Writer, training: tuple[Tensor, Tensor], validation: tuple[Tensor, Tensor]) -> Writer:
    """The model with the least validation loss on the way: AdamW until 6 epochs in a row bring nothing new."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.1)
    best, best_loss, best_epoch, epoch = model, float("inf"), 0, 0
    while epoch - best_epoch < 6:
        epoch += 1
        for rows in torch.randperm(len(training[0])).split(64):
            optimizer.zero_grad()
            loss(model, training[0][rows], training[1][rows]).backward()
            optimizer.step()
        model.eval()
        with torch.no_grad():
            now = loss(model, *validation).item()
        model.train()
        if now < best_loss:
            best, best_loss, best_epoch = copy.deepcopy(model), now, epoch
    print(f"names: best of {epoch} epochs was {best_epoch}, validation loss {best_loss:.4f}")
    return best.eval()


def count_bits(training: list[str], test: list[str], before: int) -> float:
    """Bits per character of the test names by counts of the `before` characters before, smoothed by shorter ones."""
    counts: Counter[tuple[str, str]] = Counter()
    contexts: Counter[str] = Counter()
    for text, place in characters(training):
        for length in range(before + 1):
            context = text[max(0, place - length) : place]
            counts[context, text[place]] += length <= place
            contexts[context] += length <= place

    def probability(text: str, place: int, length: int) -> float:
        if length < 0:
            return 1 / len(VOCABULARY)
        context = text[max(0, place - length) : place]
        shorter = probability(text, place, length - 1)
        return (counts[context, text[place]] + 5 * shorter) / (contexts[context] + 5)

    return float(-np.mean([np.log2(probability(text, place, before)) for text, place in characters(test)]))


def characters(names: list[str]) -> list[tuple[str, int]]:
    """Each place of each name with a character to predict, in the name with its start and end."""
    return [(END + name + END, place) for name in names for place in range(1, len(name) + 2)]


@torch.no_grad()
def write(model: Writer, count: int) -> list[str]:
    """Names drawn at temperature 1; those that do not end within 20 characters are cut there."""
    tokens = torch.zeros(count, 1, dtype=torch.long)
    for _ in range(20):
        tokens = torch.cat([tokens, torch.multinomial(model(tokens)[:, -1].softmax(-1), 1)], 1)
    return ["".join(VOCABULARY[token] for token in row).split(END)[1] for row in tokens.tolist()]


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    names = first_names()
    shuffled = [names[row] for row in torch.randperm(len(names))]
    test, validation, training = shuffled[:500], shuffled[500:1000], shuffled[1000:]
    model = fit(Writer(), pairs(training), pairs(validation))
    with torch.no_grad():
        bits = loss(model, *pairs(test)).item() / np.log(2)
    written = write(model, 1000)
    known = sum(name in set(names) for name in written) / len(written)
    description = DESCRIPTION.format(
        vocabulary=json.dumps(VOCABULARY),
        end=END,
        count=len(names),
        train=len(training),
        validation=len(validation),
        test=len(test),
        bits=bits,
        trigrams=count_bits(training, test, 2),
        bigrams=count_bits(training, test, 1),
        unigrams=count_bits(training, test, 0),
        written=len(written),
        known=known,
        new=1 - known,
    )
    embedding = {"type": "embedding", "num_embeddings": len(VOCABULARY), "embedding_dim": model.embedding.embedding_dim}
    front = [(embedding, model.embedding.state_dict())]
    save("names", model.recurrent, description, model.head, front=front)
    ids = {character: token for token, character in enumerate(VOCABULARY)}
    (MODELS / "names" / "vocabulary.json").write_text(json.dumps(ids) + "\n")
    print(description)
    print("Some:", *written[:12])


if __name__ == "__main__":
    main()
