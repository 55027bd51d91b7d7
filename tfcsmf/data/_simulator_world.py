"""The hidden world behind the simulator: latent factors, and what they show.

Users and items are points around shared interest clusters. The columns a model
may see (category, brand, price, ...) are noisy functions of these points, so an
item without a single event still tells where it lies.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from tfcsmf.config import SimulatorConfig

IMAGE_WIDTH = 8
MISSING_ITEM_SHARE = 0.02
MISSING_USER_SHARE = 0.05

_CLUSTERS = 15
_BRANDS = 60
_TAGS = 40
_MAX_TAGS = 4
_AGE_GROUPS = ("18-24", "25-34", "35-44", "45-54", "55-64", "65+")
_COUNTRIES = ("BR", "DE", "ES", "FR", "IN", "JP", "KR", "US")
# Shares of variance that cluster centres explain; the rest is individual taste.
_ITEM_CLUSTER_SHARE = 0.7
_USER_CLUSTER_SHARE = 0.8


@dataclass(frozen=True)
class World:
    """Everything that decides behaviour; nothing here is shown to a model.

    Attributes:
      users: latent factors, float64 [U, F], about unit variance per coordinate.
      items: latent factors, float64 [I, F], likewise.
      category: cluster of each item, int64 [I].
      log_popularity: Zipf log weight of each item, float64 [I], at most 0.
      quality: standard normal appeal of an item to everybody, float64 [I].
      log_price: natural logarithm of the price, float64 [I].
      price_score: log price relative to its category, float64 [I].
      price_sensitivity: how much a high `price_score` deters, float64 [U], > 0.
      log_income: natural logarithm of the yearly income, float64 [U].
    """

    users: np.ndarray
    items: np.ndarray
    category: np.ndarray
    log_popularity: np.ndarray
    quality: np.ndarray
    log_price: np.ndarray
    price_score: np.ndarray
    price_sensitivity: np.ndarray
    log_income: np.ndarray


def make_world(config: SimulatorConfig, rng: np.random.Generator) -> World:
    """Draws the latent factors of all users and items."""
    factors = config.factors
    centres = rng.standard_normal((_CLUSTERS, factors))
    category = rng.integers(_CLUSTERS, size=config.items)
    items = _blend(centres[category], _ITEM_CLUSTER_SHARE, rng)
    # A small Dirichlet parameter: most users follow two or three interests.
    interests = rng.dirichlet(np.full(_CLUSTERS, 0.15), size=config.users)
    interests /= np.linalg.norm(interests, axis=1, keepdims=True)
    users = _blend(interests @ centres, _USER_CLUSTER_SHARE, rng)

    quality = rng.standard_normal(config.items)
    # Good items are somewhat more popular, but far from always.
    order = np.argsort(-(0.3 * quality + rng.standard_normal(config.items)))
    rank = np.empty(config.items)
    rank[order] = np.arange(1, config.items + 1)

    direction = _directions(1, factors, rng)[0]
    price_score = (
        0.3 * items @ direction
        + 0.3 * quality
        + 0.3 * rng.standard_normal(config.items)
    )
    log_price = 3.0 + 0.8 * rng.standard_normal(_CLUSTERS)[category] + price_score
    wealth = 0.5 * users @ _directions(1, factors, rng)[0]
    wealth += np.sqrt(0.75) * rng.standard_normal(config.users)
    return World(
        users=users,
        items=items,
        category=category,
        log_popularity=-config.popularity * np.log(rank),
        quality=quality,
        log_price=log_price,
        price_score=price_score,
        price_sensitivity=np.exp(-0.5 * wealth),
        log_income=10.3 + 0.5 * wealth,
    )


def item_table(world: World, rng: np.random.Generator) -> pl.DataFrame:
    """Returns what is shown of the items; about 2 % of values are missing."""
    size, factors = world.items.shape
    brand = _choose(world.items, _BRANDS, 2.0, rng)[:, 0]
    tags = _choose(world.items, _TAGS, 2.0, rng)[:, :_MAX_TAGS]
    tag_counts = rng.integers(1, _MAX_TAGS + 1, size=size)
    image = world.items @ _directions(IMAGE_WIDTH, factors, rng).T
    image += 0.4 * rng.standard_normal(image.shape)
    table = pl.DataFrame(
        {
            "item_id": pl.Series(np.arange(size)).cast(pl.String),
            "category": pl.Series(world.category).cast(pl.String),
            "brand": pl.Series(brand).cast(pl.String),
            "price": np.round(np.exp(world.log_price), 2),
            "tags": pl.Series(np.char.add("tag_", tags.astype(str)).tolist()),
            "image": pl.Series(
                image.astype(np.float32), dtype=pl.Array(pl.Float32, IMAGE_WIDTH)
            ),
        }
    ).with_columns(
        item_id="i" + pl.col("item_id"),
        category="category_" + pl.col("category"),
        brand="brand_" + pl.col("brand"),
        tags=pl.col("tags").list.head(pl.lit(pl.Series(tag_counts))),
    )
    return _hide(table, ("brand", "price", "tags", "image"), MISSING_ITEM_SHARE, rng)


def user_table(world: World, rng: np.random.Generator) -> pl.DataFrame:
    """Returns what is shown of the users; about 5 % of values are missing."""
    size, factors = world.users.shape
    age = 0.6 * world.users @ _directions(1, factors, rng)[0]
    age += 0.8 * rng.standard_normal(size)
    bounds = np.array([-1.0, -0.4, 0.2, 0.8, 1.4])
    country = _choose(world.users, len(_COUNTRIES), 1.0, rng)[:, 0]
    table = pl.DataFrame(
        {
            "user_id": pl.Series(np.arange(size)).cast(pl.String),
            "age_group": np.array(_AGE_GROUPS)[np.searchsorted(bounds, age)],
            "country": np.array(_COUNTRIES)[country],
            "income": np.round(np.exp(world.log_income), -2),
        }
    ).with_columns(user_id="u" + pl.col("user_id"))
    return _hide(table, ("age_group", "country", "income"), MISSING_USER_SHARE, rng)


def _blend(centre: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """Adds individual noise so that centres explain `share` of the variance."""
    noise = rng.standard_normal(centre.shape)
    return np.sqrt(share) * centre + np.sqrt(1.0 - share) * noise


def _directions(count: int, factors: int, rng: np.random.Generator) -> np.ndarray:
    """Returns random unit vectors, [count, factors]."""
    vectors = rng.standard_normal((count, factors))
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def _choose(
    points: np.ndarray, count: int, sharpness: float, rng: np.random.Generator
) -> np.ndarray:
    """Orders `count` labels per point, [n, count], by a softmax of similarity.

    The first column is a sample from the softmax; the first m columns are a
    sample of m labels without replacement (Gumbel top-m).
    """
    labels = _directions(count, points.shape[1], rng)
    keys = sharpness * points @ labels.T + rng.gumbel(size=(len(points), count))
    return np.argsort(-keys, axis=1)


def _hide(
    table: pl.DataFrame,
    columns: tuple[str, ...],
    share: float,
    rng: np.random.Generator,
) -> pl.DataFrame:
    """Replaces a random share of each column's values by null."""
    hidden = rng.random((len(columns), len(table))) < share
    return table.with_columns(
        pl.when(~pl.Series(mask)).then(pl.col(name)).alias(name)
        for name, mask in zip(columns, hidden, strict=True)
    )
