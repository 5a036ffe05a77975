#!/usr/bin/env bash
# torch 2.13.0, CPU: fused Adam gives the entries of a row other bits alone than within the buffer that holds the row.
#
# Guess: Adam computes every entry from that entry's own gradient and moments. So it makes no difference whether it is
#   given a buffer of 8 rows or its 8 rows one by one.
# Seen: the two are equal if the length of the rows is a multiple of the vector's width (8 or 16 numbers of fp32), else
#   the last entries of the rows differ, here by at most 5e-7 after 200 steps. What is left over behind the last whole
#   vector is computed by scalar code, which rounds otherwise, and which entries are left over depends on the slice.
#   Without vectors (ATEN_CPU_CAPABILITY=default) all are equal. Seen on x86-64, with AVX2 and with AVX-512.
# Remedy: pad rows to a multiple of 16, or always update in the same slices.
# Known: torch's notes on numerical accuracy promise no equal bits for slices in general.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
cd "$place"
python3 -m venv venv
venv/bin/pip install -q torch==2.13.0 numpy==2.4.6 # with what they need: one gigabyte and more

cat > show.py <<'EOF'
import torch

torch.set_num_threads(1)
torch.manual_seed(0)


def trained(start, gradients):
    weights = start.clone().requires_grad_()
    adam = torch.optim.Adam([weights], lr=0.03, fused=True)
    for gradient in gradients:
        weights.grad = gradient.clone()
        adam.step()
    return weights.detach()


for width in (64, 96, 100):
    start, gradients = torch.randn(8, width), torch.randn(200, 8, width)
    whole = trained(start, gradients)
    rows = torch.stack([trained(start[row], gradients[:, row]) for row in range(8)])
    columns = (whole != rows).any(0).nonzero().flatten().tolist()
    print(f"rows of {width}: differ in {'columns' if columns else 'none'}", *columns)
    assert torch.allclose(whole, rows, rtol=0, atol=2e-6)
EOF
venv/bin/python show.py > seen
diff - seen <<'EOF'
rows of 64: differ in none
rows of 96: differ in none
rows of 100: differ in columns 96 97 98 99
EOF
cat seen
