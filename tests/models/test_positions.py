import jax.numpy as jnp
import numpy as np
import pytest

from siglip_jax.models.positions import bicubic_matrix, bucket_ids, grid_bucket_ids, resize_position_table


def brute_force(table, rows, columns):
    """Torch's bicubic as its definition has it, one output at a time, in float64."""

    def weight(x):
        x, a = abs(x), -0.75
        if x <= 1:
            return (a + 2) * x**3 - (a + 3) * x**2 + 1
        return a * (x**3 - 5 * x**2 + 8 * x - 4) if x < 2 else 0.0

    side, width = table.shape[0], table.shape[2]
    out = np.zeros((rows, columns, width))
    for r in range(rows):
        y = (r + 0.5) * side / rows - 0.5
        for c in range(columns):
            x = (c + 0.5) * side / columns - 0.5
            for i in range(int(np.floor(y)) - 1, int(np.floor(y)) + 3):
                for j in range(int(np.floor(x)) - 1, int(np.floor(x)) + 3):
                    source = table[min(max(i, 0), side - 1), min(max(j, 0), side - 1)]
                    out[r, c] += weight(y - i) * weight(x - j) * source
    return out


@pytest.mark.parametrize(("side", "grid"), [(4, (7, 3)), (7, (4, 4)), (1, (3, 2)), (14, (24, 1)), (5, (5, 9))])
def test_equals_torch(side, grid):
    table = np.random.RandomState(0).standard_normal((side * side, 5)).astype(np.float32)
    found = resize_position_table(jnp.asarray(table), grid)
    expected = brute_force(table.reshape(side, side, 5).astype(np.float64), *grid).reshape(-1, 5)
    np.testing.assert_allclose(found, expected, atol=2e-6)

    torch = pytest.importorskip("torch", reason="torch has no CPU build here; the definition above stands in")
    square = torch.tensor(table.reshape(side, side, 5)).permute(2, 0, 1)[None].double()
    reference = torch.nn.functional.interpolate(square, size=grid, mode="bicubic", align_corners=False)
    np.testing.assert_allclose(expected, reference[0].permute(1, 2, 0).reshape(-1, 5), atol=1e-12)


def test_rows_sum_to_one_and_the_same_size_is_the_identity():
    np.testing.assert_allclose(bicubic_matrix(9, 31).sum(1), 1, rtol=1e-12)
    np.testing.assert_array_equal(bicubic_matrix(6, 6), np.eye(6))


def test_a_table_that_is_not_square_is_refused():
    with pytest.raises(ValueError, match="position table must be square to be resized, got 6 positions"):
        resize_position_table(jnp.zeros((6, 4)), (3, 3))


# Sides of the position tables of SigLIP L/16-384, Idefics 3, SmolVLM (14 and 16 px), Phi-4, Idefics 2 and MiniCPM-V.
SIDES = (24, 26, 27, 32, 70)


@pytest.mark.parametrize("side", SIDES)
def test_bucket_ids_equal_the_position_ids_of_idefics(side):
    """Also where a patch begins at the border of an entry, so that the last bit of float32 decides."""
    torch = pytest.importorskip("torch", reason="torch has no CPU build here")
    found = bucket_ids(side, 120)
    assert (found[side][:side] == np.arange(side)).all()
    borders = torch.arange(1 / side, 1.0, 1 / side)
    for count in range(1, 121):
        step = 1.0 / torch.tensor([count])
        starts = torch.clamp(torch.arange(count, dtype=torch.float32)[None] * step[:, None], max=(1.0 - 1e-6))
        expected = torch.bucketize(starts, borders, right=True).numpy()[0]
        assert (found[count][:count] == expected).all(), count


def test_bucket_ids_of_a_grid_and_of_images_of_several_sizes():
    one = np.asarray(grid_bucket_ids(4, (2, 8)))
    assert one.tolist() == [[0, 0, 1, 1, 2, 2, 3, 3, 8, 8, 9, 9, 10, 10, 11, 11]]
    counts = jnp.array([(2, 8), (1, 3)], jnp.int32)
    two = np.asarray(grid_bucket_ids(4, (2, 8), counts)).reshape(2, 2, 8)
    assert two[0].reshape(-1).tolist() == one[0].tolist()
    assert two[1, 0, :3].tolist() == [0, 1, 2]
