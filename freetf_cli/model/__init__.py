"""The models. `decoder.Decoder` is the baseline, `free_transformer.FreeTransformer` the paper."""
