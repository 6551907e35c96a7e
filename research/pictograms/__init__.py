"""How the bundled model was made: data, styles, training stages and scores. See README.md."""
