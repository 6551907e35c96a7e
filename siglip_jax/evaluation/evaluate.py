"""The four evaluations of a model on a data set, on its own or during training with the current parameters."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from siglip_jax._callbacks import Counter
from siglip_jax.data.example import Source
from siglip_jax.evaluation import neighbours, probes, zero_shot
from siglip_jax.evaluation.accuracy import accuracy
from siglip_jax.evaluation.embeddings import Embedded, embed_examples, embed_texts, spread, spread_images
from siglip_jax.evaluation.prompts import TEMPLATES, named_classes, refuse_codes
from siglip_jax.evaluation.result import DEFAULTS, Options, Result
from siglip_jax.evaluation.retrieval import KS, retrieval_ranks
from siglip_jax.evaluation.wording import Wording, embed_classes, other_names
from siglip_jax.inference.engine import Siglip
from siglip_jax.inference.preprocessing import describe


def evaluate_zero_shot(
    siglip: Siglip,
    source: Source,
    *,
    templates: Sequence[str] = TEMPLATES["names"],
    classes: Sequence[str] | None = None,
    canonicalize: bool = True,
    first_name_only: bool = True,
    options: Options = DEFAULTS,
) -> Result:
    """Classifies each image by the class whose prompts are nearest, without any training.

    The embedding of a class is the mean of the embeddings of its prompts, one for each name and template. Published
    results use the canonical form of prompts, and the wording of templates is worth several points, so
    `Result.preprocessing` records both.

    Args:
      siglip: the model.
      source: data set with classes; images without a label are left out.
      templates: sentences in which the name of a class replaces `{}`; the default is the bare name.
      classes: names to use in place of `source.classes`, in the same order, or lines of a class and its name, such as
        "n01440764 tench", in any order; classes may be missing in the source, whose labels are then indices of these
        names. None: the names of the source. Commas separate the names of one class.
      canonicalize: whether to write names and templates in lower case, without punctuation and with spaces for
        underscores; otherwise they are unchanged.
      first_name_only: whether to use only the name before the first comma, as big_vision does by default: "tench" of
        "tench, Tinca tinca"; otherwise each name has prompts of its own. `settings["other_names"]` counts the names
        after the first ones, whether they are used or not.
      options: limit, batch size and callbacks, which all evaluations share.

    Returns:
      The result, with the metrics `top1`, `top5` and `mean_per_class`.

    Raises:
      ValueError: if there are fewer than two classes, no readable images or no labels, or `classes` does not name each
        class, has the names of the source in another order, or is None where the source names classes by WordNet ids.

    Example:
      >>> import shutil, tempfile
      >>> from pathlib import Path
      >>> import siglip_jax
      >>> from siglip_jax.assets import EXAMPLES
      >>> from siglip_jax.data import open_source
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     for name in ("bicycle", "horse", "pizza"):
      ...         (Path(folder) / name).mkdir()
      ...         _ = shutil.copy(EXAMPLES / f"{name}.png", Path(folder) / name)
      ...     result = evaluate_zero_shot(siglip_jax.load(), open_source(folder))
      >>> result.metrics["top1"]
      1.0
    """
    wording = Wording(templates, canonicalize, first_name_only)
    compared = compare(siglip, source, wording, classes, options)
    ranked = zero_shot.classify(compared.embedded.embeds, compared.class_embeds)
    described = wording.describe(siglip, options.model_name)
    settings: dict[str, Any] = {"limit": options.limit, "other_names": other_names(compared.names)}
    if classes is not None and source.classes:
        settings["classes_in_data"] = list(source.classes)
    return _classified("zero-shot", compared.embedded, ranked, compared.names, settings, described)


def knn(
    siglip: Siglip,
    source: Source,
    train: Source,
    *,
    k: int = 20,
    temperature: float | None = None,
    options: Options = DEFAULTS,
) -> Result:
    """Classifies each image by the votes of its k nearest neighbours in a training set.

    Source: weighted votes as in "Emerging Properties in Self-Supervised Vision Transformers" (Caron et al., 2021),
    which uses k = 20 and a temperature of 0.07.

    Args:
      siglip: the model.
      source: data set to evaluate, with classes that are all among those of `train`, by name; images without a label
        are left out.
      train: data set whose images are the neighbours, with classes; it is always used in full.
      k: number of neighbours that vote, 1 to the number of images of `train`.
      temperature: each neighbour votes with weight exp(cosine / temperature); None: all weights are equal.
      options: limit, batch size and callbacks, which all evaluations share.

    Returns:
      The result, with the metrics `top1`, `top5` and `mean_per_class`; its classes are those of `train`.

    Raises:
      ValueError: if there are fewer than two classes, no readable images or no labels, `train` lacks a class, or k is
        too large.

    Example:
      >>> import shutil, tempfile
      >>> from pathlib import Path
      >>> import siglip_jax
      >>> from siglip_jax.assets import EXAMPLES
      >>> from siglip_jax.data import open_source
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     for name in ("bicycle", "horse", "pizza"):
      ...         (Path(folder) / name).mkdir()
      ...         _ = shutil.copy(EXAMPLES / f"{name}.png", Path(folder) / name)
      ...     source = open_source(folder)
      ...     result = knn(siglip_jax.load(), source, train=source, k=1)
      >>> result.metrics["top1"]
      1.0
    """
    renumber = same_classes(source, train)
    counter = Counter(options.on_progress, len(train) + len(spread(len(source), options.limit)))
    known = _labelled(siglip, train, dataclasses.replace(options, limit=None), counter)
    embedded = _labelled(siglip, source, options, counter)
    similarities, near = neighbours.nearest_keys(embedded.embeds, known.embeds, k)
    ranked = neighbours.vote(similarities, known.labels[near], temperature=temperature)
    settings = {"k": k, "temperature": temperature, "train_examples": len(known.labels), "limit": options.limit}
    settings["train_unreadable"] = known.unreadable
    embedded = embedded._replace(labels=renumber[embedded.labels])
    described = describe(siglip, model_name=options.model_name, texts=False)
    return _classified("knn", embedded, ranked, train.classes, settings, described)


def linear_probe(
    siglip: Siglip,
    source: Source,
    train: Source,
    *,
    probe: str = "logistic",
    strength: float | None = None,
    shots: int | None = None,
    seed: int = 0,
    options: Options = DEFAULTS,
) -> Result:
    """Classifies each image by a linear classifier that is fitted to the embeddings of a training set.

    Logistic regression minimises the mean cross-entropy plus strength / 2 times the sum of squared weights, by L-BFGS
    to convergence. Ridge regression fits -1 and 1 for each class in closed form.

    Source: ridge regression as in `evaluators/fewshot_lsr.py` of big_vision, but with the bias left free exactly.

    Args:
      siglip: the model.
      source: data set to evaluate, with classes that are all among those of `train`, by name; images without a label
        are left out.
      train: data set that the classifier is fitted to, with classes; `options.limit` does not apply to it.
      probe: "logistic" or "ridge".
      strength: strength of the penalty, above 0; None: the best one on a fifth of the training set.
      shots: number of random examples of each class to fit to, or all of a class that has fewer; None: all.
      seed: seed of the choice of these examples and of the held-out fifth.
      options: limit, batch size and callbacks, which all evaluations share.

    Returns:
      The result, with the metrics `top1`, `top5` and `mean_per_class`; its classes are those of `train`, and its
      settings have the strength and whether the fit converged.

    Raises:
      NotInstalledError: if Optax, which logistic regression needs, is not installed.
      ValueError: if there are fewer than two classes, no readable images or no labels, `train` lacks a class, or no
        class has two images to choose the strength.

    Example:
      >>> import shutil, tempfile
      >>> from pathlib import Path
      >>> import siglip_jax
      >>> from siglip_jax.assets import EXAMPLES
      >>> from siglip_jax.data import open_source
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     for name in ("bicycle", "horse", "pizza"):
      ...         (Path(folder) / name).mkdir()
      ...         _ = shutil.copy(EXAMPLES / f"{name}.png", Path(folder) / name)
      ...     source = open_source(folder)
      ...     result = linear_probe(siglip_jax.load(), source, train=source, probe="ridge", strength=1.0)
      >>> result.metrics["top1"]
      1.0
    """
    kinds = {
        "logistic": (probes.fit_logistic, probes.LOGISTIC_STRENGTHS),
        "ridge": (probes.fit_ridge, probes.RIDGE_STRENGTHS),
    }
    if probe not in kinds:
        raise ValueError(f"probe must be one of {', '.join(kinds)}, got {probe!r}")
    renumber = same_classes(source, train)
    counter = Counter(options.on_progress, len(train) + len(spread(len(source), options.limit)))
    known = _labelled(siglip, train, dataclasses.replace(options, limit=None), counter)
    embedded = _labelled(siglip, source, options, counter)
    taken = np.arange(len(known.labels)) if shots is None else probes.few_shots(known.labels, shots, seed)
    fit, strengths = kinds[probe]
    chosen = probes.choose(
        fit,
        known.embeds[taken],
        known.labels[taken],
        len(train.classes),
        strengths if strength is None else (strength,),
        seed=seed,
    )
    settings = {
        "probe": probe,
        "strength": chosen.classifier.strength,
        "converged": chosen.classifier.gradient <= 2 * probes.TOLERANCE,
        "tried": [{"strength": tried, "held_out_top1": share} for tried, share in chosen.tried.items()],
        "shots": shots,
        "seed": seed,
        "train_examples": len(taken),
        "train_unreadable": known.unreadable,
        "limit": options.limit,
    }
    embedded = embedded._replace(labels=renumber[embedded.labels])
    ranked = chosen.classifier.classify(embedded.embeds)
    described = describe(siglip, model_name=options.model_name, texts=False)
    return _classified("linear-probe", embedded, ranked, train.classes, settings, described)


def evaluate_retrieval(
    siglip: Siglip,
    source: Source,
    *,
    ks: Sequence[int] = KS,
    options: Options = DEFAULTS,
) -> Result:
    r"""Retrieves each text's image among all images, and one of each image's texts among all texts.

    The recall at k is the share of queries with a right answer among the first k. Ties count against the model: an
    answer that is as near as the right one counts as nearer. A text that occurs with several images has only its own
    image as the right answer; `settings["texts_that_repeat_another"]` counts such texts. Rows of the same image, of the
    same bytes or pixels, are one image with the texts of all of them; `settings["repeated_images"]` counts the rows
    after the first one of each image.

    Args:
      siglip: the model.
      source: data set with captions; an image may have several texts, in one row or several, or none.
      ks: the values of k.
      options: limit, batch size and callbacks, which all evaluations share.

    Returns:
      The result, with the metrics `text_to_image_r1`, `image_to_text_r1` and so on for each k.

    Raises:
      ValueError: if there are no readable images or no texts.

    Example:
      >>> import shutil, tempfile
      >>> from pathlib import Path
      >>> import siglip_jax
      >>> from siglip_jax.assets import EXAMPLES
      >>> from siglip_jax.data import open_source
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     for name in ("cow", "horse"):
      ...         _ = shutil.copy(EXAMPLES / f"{name}.png", folder)
      ...     _ = (Path(folder) / "pairs.csv").write_text("image,caption\ncow.png,a cow\nhorse.png,a horse\n")
      ...     result = evaluate_retrieval(siglip_jax.load(), open_source(folder), ks=(1,))
      >>> result.metrics
      {'text_to_image_r1': 1.0, 'image_to_text_r1': 1.0}
    """
    numbers = spread_images(source, options.limit)
    rows = embed_examples(
        siglip,
        source,
        numbers=numbers,
        batch_size=options.batch_size,
        on_unreadable=options.on_unreadable,
        advance=Counter(options.on_progress, len(numbers)).add,
    )
    embedded = rows.merged()
    texts = [text for group in embedded.texts for text in group]
    owners = np.repeat(np.arange(len(embedded.texts)), [len(group) for group in embedded.texts])
    if not texts:
        raise ValueError(
            "images must have texts for retrieval, got images without any; name their column or key with text_key"
        )
    text_embeds = embed_texts(siglip, texts, batch_size=options.batch_size)
    ranks = retrieval_ranks(embedded.embeds, text_embeds, owners)
    settings = {
        "texts": len(texts),
        "texts_that_repeat_another": len(texts) - len(set(texts)),
        "images_without_text": int((ranks.image_to_text < 0).sum()),
        "repeated_images": len(rows.embeds) - len(embedded.embeds),
        "limit": options.limit,
    }
    return Result(
        "retrieval",
        ranks.recalls(ks),
        len(embedded.embeds),
        embedded.unreadable,
        settings,
        describe(siglip, model_name=options.model_name),
        embedded.numbers,
        owners,
        texts=tuple(texts),
        image_embeds=embedded.embeds,
        text_embeds=text_embeds,
    )


def same_classes(source: Source, train: Source) -> Int[np.ndarray, " classes"]:
    """Returns the index in `train.classes` of each of `source.classes`, matched by name.

    Raises:
      ValueError: if one of them has no classes, `train` has only one, or `source` has a class that `train` lacks.
    """
    _refuse_one(_names(train))
    known = {name: i for i, name in enumerate(_names(train))}
    missing = [name for name in _names(source) if name not in known]
    if missing:
        some = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
        raise ValueError(f"classes must be among those of the training set, got {len(missing)} others: {some}")
    return np.array([known[name] for name in source.classes], np.int64)


def _refuse_one(classes: Sequence[str]) -> None:
    if len(classes) < 2:
        raise ValueError(f"classes must be two or more, got only {classes[0]!r}, which would be right for every image")


class Compared(NamedTuple):
    """Embeddings of images and of the classes that they are labelled with.

    Attributes:
      names: names of the classes.
      by_class: prompts of each class.
      class_embeds: L2-normalised embeddings of the classes, (classes, E).
      embedded: embeddings of the images that have labels, which are indices of `names`.
    """

    names: tuple[str, ...]
    by_class: list[list[str]]
    class_embeds: Float[np.ndarray, "classes embed"]
    embedded: Embedded


def compare(
    siglip: Siglip, source: Source, wording: Wording, classes: Sequence[str] | None, options: Options
) -> Compared:
    """Embeds the images of a source that have labels, and its classes.

    Raises:
      ValueError: see `evaluate_zero_shot`.
    """
    names = zero_shot_names(source, classes)
    by_class = wording.prompts(names)
    embedded = _labelled(siglip, source, options, Counter(options.on_progress, len(spread(len(source), options.limit))))
    if (highest := int(embedded.labels.max())) >= len(names):
        raise ValueError(f"labels must be below {len(names)}, the number of names, got {highest}; name every class")
    return Compared(names, by_class, embed_classes(siglip, by_class, options.batch_size), embedded)


def zero_shot_names(source: Source, classes: Sequence[str] | None = None) -> tuple[str, ...]:
    """Returns the names of the classes for prompts: those given, or those of the source.

    Raises:
      ValueError: see `evaluate_zero_shot`.
    """
    if classes is not None:
        names = named_classes(source.classes or list(map(str, range(len(classes)))), classes)
    else:
        names = _names(source)
        refuse_codes(names)
    _refuse_one(names)
    return names


def _names(source: Source) -> tuple[str, ...]:
    """Returns the names of the classes of a source."""
    if not source.classes:
        raise ValueError(
            "a data set must have classes, got none; pass a folder of class folders, name the labels with label_key, or"
            " name the classes that numbers in a tar stand for: with classes, or in classnames.txt beside it"
        )
    return tuple(source.classes)


def _labelled(siglip: Siglip, source: Source, options: Options, counter: Counter) -> Embedded:
    """Embeds the images of a source that have labels."""
    embedded = embed_examples(
        siglip,
        source,
        numbers=spread(len(source), options.limit),
        batch_size=options.batch_size,
        on_unreadable=options.on_unreadable,
        advance=counter.add,
    )
    found = embedded.with_labels()
    if source.classes and (largest := int(found.labels.max(initial=-1))) >= len(source.classes):
        raise ValueError(f"labels must be below {len(source.classes)}, the number of classes, got {largest}")
    if not len(found.labels):
        raise ValueError(f"images must have labels, got none among {len(embedded.labels)} images")
    return found


def _classified(
    task: str, embedded: Embedded, ranked: np.ndarray, names: Sequence[str], settings: dict, described: dict
) -> Result:
    """Returns the result of a classification."""
    found = accuracy(ranked, embedded.labels, len(names))
    return Result(
        task,
        {"top1": found.top1, "top5": found.top5, "mean_per_class": found.mean_per_class},
        len(embedded.labels),
        embedded.unreadable,
        settings | {"classes": len(names)},
        described,
        embedded.numbers,
        embedded.labels,
        tuple(names),
        found,
        ranked,
    )
