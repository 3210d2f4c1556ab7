import torch
from sklearn.datasets import load_digits

from advbench.data import load


def test_digits_are_scikit_learns() -> None:
    train, test = load("digits", "train"), load("digits", "test")
    original = load_digits()
    both = torch.cat([train.images, test.images]).squeeze(1)
    assert torch.equal(both.double(), torch.from_numpy(original.images))
    assert torch.cat([train.labels, test.labels]).tolist() == original.target.tolist()
    assert (len(train), len(test), train.shape, train.num_classes) == (1297, 500, (1, 8, 8), 10)


def test_digits_hash_and_range() -> None:
    train, test = load("digits", "train"), load("digits", "test")
    assert train.images_sha256 == "2eb096c097bed7a3f58e7ed609ebc103131369de2a0f8f04aa5112b2a211214e"
    assert test.images_sha256 == "aeee749e038bba20b101449a229d14fbbf7abddc8e3b89f5512ef118a14e7864"
    x, y = test.batch(slice(None))
    assert x.min() == 0
    assert x.max() == 1
    assert torch.equal(x * 16, (x * 16).round())
    assert y.bincount().min() >= 46
