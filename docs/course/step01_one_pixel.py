"""Step 1: the idea on one pixel.

Attention answers a query with a weighted average of the pixels of a map. Ordinary attention compares the query with
every pixel to find the weights. Deformable attention does not compare: two linear layers turn the query into a few
places and a weight for each, and only these places are read.
"""

import torch

# A map whose numbers tell where they stand: the pixel in row 2, column 3 holds 23.
height, width = 6, 8
rows, columns = torch.arange(float(height)), torch.arange(float(width))
value = 10 * rows[:, None] + columns  # (height, width)
print("the map:")
print("\n".join(" ".join(f"{number:02.0f}" for number in row) for row in value))

# The query: the pixel in row 2, column 3. A network describes it by numbers, here by two.
here_x, here_y = 3, 2
query = torch.tensor([1.0, 2.0])

# Ordinary attention: a score for each of the pixels, each of which has a key of two numbers, too.
keys = torch.stack([value / 100, value % 10 / 10], -1)  # (height, width, 2)
weights = (keys @ query).flatten().softmax(0)  # one for each pixel; together 1
output = weights @ value.flatten()
print(f"\nordinary attention read {len(weights)} pixels; its largest weight was {weights.max():.2f}")
print(f"output {output:.2f}, an average over the whole map")

# Deformable attention: a linear layer makes two offsets (dx, dy) of the query, another one two logits.
to_offsets = torch.tensor([[2.0, 0.0], [-1.0, 1.0], [0.0, -1.0], [1.0, 0.0]])
to_logits = torch.tensor([[0.0, 0.5], [0.0, 0.0]])
offsets = (to_offsets @ query).view(2, 2)
weights = (to_logits @ query).softmax(0)
print(f"\ndeformable attention read {len(weights)} places:")
output = torch.zeros(())
for (dx, dy), weight in zip(offsets, weights, strict=True):
    x, y = int(here_x + dx), int(here_y + dy)
    print(f"  offset ({dx:+.0f}, {dy:+.0f}) -> row {y}, column {x}: value {value[y, x]:02.0f}, weight {weight:.2f}")
    output = output + weight * value[y, x]
print(f"output {output:.2f}")

# Why it matters: an encoder has one query for each pixel of its maps. Those of a photograph of 800 x 1066 pixels:
pixels = sum(h * w for h, w in ((100, 134), (50, 67), (25, 34), (13, 17)))
points = 16  # of a query and head
print(f"\nan encoder with {pixels:,} pixels, one head:")
print(f"  ordinary attention    {pixels * pixels:>11,} scores")
print(f"  deformable attention  {pixels * points:>11,} places")
print(f"  {pixels / points:,.0f} times fewer")
