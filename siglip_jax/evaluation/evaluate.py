"""The four evaluations of a model on a data set; also for use in training, around the weights of the moment."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from siglip_jax._callbacks import Counter
from siglip_jax.data.example import Source
from siglip_jax.evaluation import neighbours, probes, zero_shot
from siglip_jax.evaluation.accuracy import accuracy
from siglip_jax.evaluation.embeddings import Embedded, embed_examples, embed_texts, spread
from siglip_jax.evaluation.prompts import TEMPLATES, prompts
from siglip_jax.evaluation.result import DEFAULTS, Options, Result
from siglip_jax.evaluation.retrieval import KS, retrieval_ranks
from siglip_jax.inference.engine import Siglip
from siglip_jax.inference.preprocessing import describe


def evaluate_zero_shot(
    siglip: Siglip,
    source: Source,
    *,
    templates: Sequence[str] = TEMPLATES["names"],
    classes: Sequence[str] | None = None,
    canonicalize: bool = True,
    first_name_only: bool = False,
    options: Options = DEFAULTS,
) -> Result:
    """Names each image by the nearest of the classes' sentences.

    Args:
      source: with classes, and labels for its images; those without a label do not count.
      templates: sentences with a `{}`; a class is the mean of its embeddings.
      classes: other names for the classes, in the order of `source.classes`.
      canonicalize, first_name_only: as in `prompts`.

    Raises:
      ValueError: if there are no classes or labels, or not as many names as classes.
    """
    names = _names(source, classes)
    texts = prompts(names, templates, canonicalize=canonicalize, first_name_only=first_name_only)
    embedded = _labelled(siglip, source, options, Counter(options.on_progress, len(spread(len(source), options.limit))))
    class_embeds = zero_shot.ensemble(embed_texts(siglip, texts, batch_size=options.batch_size), len(templates))
    ranked = zero_shot.classify(embedded.embeds, class_embeds)
    described = describe(
        siglip,
        model_name=options.model_name,
        templates=templates,
        canonicalize=canonicalize,
        first_name_only=first_name_only,
    )
    return _classified("zero-shot", embedded, ranked, names, {"limit": options.limit}, described)


def knn(
    siglip: Siglip,
    source: Source,
    train: Source,
    *,
    k: int = 20,
    temperature: float | None = None,
    options: Options = DEFAULTS,
) -> Result:
    """Names each image by the votes of the k nearest images of `train`; see `neighbours.vote`.

    Raises:
      ValueError: if there are no classes or labels, a class is not one of the training set's, or k is too large.
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
    """Names each image by a linear classifier of the embeddings of `train`.

    Args:
      probe: "logistic" or "ridge"; see `probes`.
      strength: of the penalty; by default the best on a fifth of the training set.
      shots: examples of each class to learn from; None: all.
      seed: of that choice, and of the part that is held out.

    Raises:
      ValueError: if there are no classes or labels, or a class is not one of the training set's.
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
    """Finds each text's image among all images, and one of each image's texts among all texts.

    Raises:
      ValueError: if there are no texts.
    """
    numbers = spread(len(source), options.limit)
    embedded = embed_examples(
        siglip,
        source,
        numbers=numbers,
        batch_size=options.batch_size,
        on_unreadable=options.on_unreadable,
        advance=Counter(options.on_progress, len(numbers)).add,
    )
    texts = [text for group in embedded.texts for text in group]
    owners = np.repeat(np.arange(len(embedded.texts)), [len(group) for group in embedded.texts])
    if not texts:
        raise ValueError("retrieval needs texts, found images without any; name the column or key that holds them")
    text_embeds = embed_texts(siglip, texts, batch_size=options.batch_size)
    ranks = retrieval_ranks(embedded.embeds, text_embeds, owners)
    settings = {
        "texts": len(texts),
        "texts_that_repeat_another": len(texts) - len(set(texts)),
        "images_without_text": int((ranks.image_to_text < 0).sum()),
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
    """Returns the number in `train.classes` of each of `source.classes`, found by name.

    Raises:
      ValueError: if one has none, or `source` has a class that `train` lacks.
    """
    known = {name: i for i, name in enumerate(_names(train, None))}
    missing = [name for name in _names(source, None) if name not in known]
    if missing:
        some = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
        raise ValueError(f"expected the classes of the training set, found {len(missing)} others: {some}")
    return np.array([known[name] for name in source.classes], np.int64)


def _names(source: Source, classes: Sequence[str] | None) -> tuple[str, ...]:
    if not source.classes:
        raise ValueError("expected a data set with classes, found none; give a folder of class folders, or --label-key")
    if classes is not None and len(classes) != len(source.classes):
        raise ValueError(f"expected a name for each of {len(source.classes)} classes, found {len(classes)}")
    return tuple(source.classes if classes is None else classes)


def _labelled(siglip: Siglip, source: Source, options: Options, counter: Counter) -> Embedded:
    embedded = embed_examples(
        siglip,
        source,
        numbers=spread(len(source), options.limit),
        batch_size=options.batch_size,
        on_unreadable=options.on_unreadable,
        advance=counter.add,
    )
    found = embedded.with_labels()
    if not len(found.labels):
        raise ValueError(f"expected images with labels, found none among {len(embedded.labels)}")
    return found


def _classified(
    task: str, embedded: Embedded, ranked: np.ndarray, names: Sequence[str], settings: dict, described: dict
) -> Result:
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
