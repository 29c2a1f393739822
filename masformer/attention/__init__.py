"""Attention under a span, its key/value cache, and prefill.

Which kernel when (`kernels.choose_kernel`; figures are in docs/performance.md):

| case | on the CPU | on CUDA |
| --- | --- | --- |
| whatever `simd.takes`: fp32 and bf16 without gradients, spans that `tiles` knows | `simd`, where it is faster | |
| one token on top of a cache | `scaled_dot_product_attention` over what is kept | the same |
| ... up to 16 where the span is finite | the same, under a mask | the same where `varlen_attn` is not |
| ... of a fork's full layer, with learned sinks or capped | `parts`, merged by log-sum-exp | the same |
| ... of several prompts at once | `joined`: a part for each run that they share | in half precision `cuda_joined` |
| every query sees all before it | `scaled_dot_product_attention`, causal | the same |
| ... on top of a cache | `parts`: a part for each run of keys | in half precision `varlen_attn` (`cuda`), else flex |
| a window | `tiles`, or `parts` of views: as measured (`ways`) | as on top of a cache |
| blocks, learned sinks | `tiles` | as on top of a cache |
| soft-capped scores | `tiles` | compiled flex_attention |
| ... in fp64, or flex for heads smaller than 16 | `tiles` | `tiles` |
| a pattern that `tiles` does not know | masks of a few rows | flex, else masks of a few rows |
| dropout of attention weights | masks of a few rows | the same |

On a CPU with AVX-512 or AVX2 and a C++ compiler the first row goes before all others, but for few tokens that do not
see all that the cache has kept. For long prefills it is measured against the other ways (`ways`).

Left padding and packed documents are computed row by row and document by document, by `varlen_attn` all at once; heads
that see differently group by group (`heads`).
"""
