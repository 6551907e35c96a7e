"""The sigmoid loss from its definition, in float64, with its gradients by hand; and embeddings to try it on."""

import numpy as np

TEMPERATURES = [(np.log(10), -10.0), (np.log(117.0), -12.9), (np.log(120), -17.0), (0.0, 0.0)]


def embeddings(images=13, texts=None, width=24, alike=0.0, seed=0):
    """Returns unit rows, representable in float32; texts are `alike` to the images of their row."""
    random = np.random.RandomState(seed)
    one, two = random.standard_normal((images, width)), random.standard_normal((texts or images, width))
    one /= np.linalg.norm(one, axis=1, keepdims=True)
    two /= np.linalg.norm(two, axis=1, keepdims=True)
    both = min(len(one), len(two))
    two[:both] = alike * one[:both] + (1 - alike) * two[:both]
    two /= np.linalg.norm(two, axis=1, keepdims=True)
    return [x.astype(np.float32).astype(np.float64) for x in (one, two)]


def truth(images, texts, scale, bias, match=None):
    """Returns the value and the gradients of images, texts, scale and bias."""
    scale, bias = (float(np.float32(x)) for x in (scale, bias))
    match = np.eye(len(images), len(texts), dtype=bool) if match is None else match
    logits = np.exp(scale) * images @ texts.T + bias
    signs = np.where(match, 1, -1)
    value = np.logaddexp(0, -signs * logits).sum(1).mean()
    d = -signs / (1 + np.exp(signs * logits)) / len(images)
    t = np.exp(scale)
    return value, (t * d @ texts, t * d.T @ images, (d * (logits - bias)).sum(), d.sum())


def check(found, expected, names=("images", "texts", "scale", "bias")):
    """Value within 1e-6, each gradient within 1e-5 of its largest entry."""
    (value, gradients), (true_value, true_gradients) = found, expected
    np.testing.assert_allclose(value, true_value, rtol=1e-6)
    for name, x, y in zip(names, gradients, true_gradients, strict=True):
        assert np.abs(np.asarray(x, np.float64) - y).max() <= 1e-5 * np.abs(y).max(), name
