import jax.numpy as jnp
import numpy as np
import pytest

from siglip_jax.models.positions import bicubic_matrix, resize_position_table


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
