"""
The executable specification of ScanFormer's forward pass, for the tests to hold every fast path against.

One sample at a time, from the modules' weights alone: no cache, no gathering, no merging; every patch of every scale is
a token, and one dense mask says who sees whom.
"""

import torch
from torch import nn


def reference_forward(model, input_ids, attention_mask, pixel_values, pixel_attention_mask, spatial_shapes):
    """
    Boxes, score logits and selection of a batch.

    Returns:
        `scale_boxes` of shape `(batch_size, num_scales, 4)`, `score_logits` of shape `(batch_size, num_scales)`, and per
        sample and scale a boolean `selected` and (with more than one scale) `logits` of shape `(num_patches, 4)`.
    """
    samples = []
    for row in range(len(pixel_values)):
        text = input_ids[row][attention_mask[row].bool()]
        samples.append(
            _scan(model, text, _scales(model, pixel_values[row], pixel_attention_mask[row]), spatial_shapes[row])
        )
    boxes, scores, selected, logits = zip(*samples)
    return torch.stack(boxes), torch.stack(scores), list(selected), list(logits)


def _scales(model, pixel_values, pixel_attention_mask):
    """The real patches of every scale. Scale s is padded to 4**s times the padded count of scale 0."""
    num_scales = model.config.num_scales
    coarsest = 3 * len(pixel_values) // (4**num_scales - 1)
    counts = [coarsest * 4**scale for scale in range(num_scales)]
    return [p[m.bool()] for p, m in zip(pixel_values.split(counts), pixel_attention_mask.split(counts))]


def _scan(model, text, scales, shapes):
    encoder, config = model.model, model.config
    positions = torch.arange(len(text))
    text_embeddings = encoder.text_embeddings
    tokens = text_embeddings.word_embeddings(text) + text_embeddings.position_embeddings(positions)
    tokens = text_embeddings.layernorm(tokens) + encoder.modality_embeddings.weight[0]
    groups = torch.zeros(len(text))  # a token sees the groups up to its own: 0 is the text, s + 1 is scale s
    starts = []

    selected, logits = [torch.ones(len(scales[0]), dtype=torch.bool)], []
    gates = torch.zeros(len(scales[0]), dtype=tokens.dtype)
    for scale, patches in enumerate(scales):
        embeddings = _embed(encoder.patch_embeddings, patches, shapes[scale], scale, selected[scale])
        embeddings = embeddings + encoder.modality_embeddings.weight[1]
        if scale > 0:
            # x_j = k_j e_j + (1 - k_j) c, where dk_j/ds_j := 1 for the children of selected parents
            k = (selected[scale].to(tokens.dtype) + gates)[:, None]
            embeddings = k * embeddings
            if config.use_constant_token:
                embeddings = embeddings + (1 - k) * encoder.constant_token.weight[0]
        reg = encoder.reg_tokens.weight[scale] + encoder.modality_embeddings.weight[1]
        starts.append(len(tokens))
        tokens = torch.cat([tokens, reg[None], embeddings])
        is_seen = selected[scale] | config.use_constant_token
        own = torch.where(is_seen, scale + 1.0, torch.inf)
        groups = torch.cat([groups, torch.tensor([scale + 1.0]), own])
        if len(scales) > 1:
            outputs = _run(encoder.layers[: config.selection_layer], tokens, groups)[-len(patches) :]
            logits.append(encoder.selection_head(outputs))
        if scale + 1 < len(scales):
            children = _to_children(logits[-1], shapes[scale])
            informativeness = children.sigmoid()
            offered = _to_children(selected[scale][:, None].expand(-1, 4), shapes[scale])
            selected.append((informativeness > config.selection_threshold) & offered)
            gates = (informativeness - informativeness.detach()) * offered

    outputs = encoder.layernorm(_run(encoder.layers, tokens, groups))
    reg_states = outputs[starts]
    boxes = model.box_head(reg_states).sigmoid()
    if config.refine_boxes:
        scales = zip(boxes.detach(), starts, selected, shapes)
        boxes = torch.stack([_refine(model.box_refinement, box, outputs[s + 1 :], *of) for box, s, *of in scales])
    return boxes, model.score_head(reg_states)[:, 0], selected, logits


def _refine(refinement, box, states, selected, shape):
    """By the selected patch whose center is nearest to the box's, in units of patches."""
    (rows, columns), places = shape.tolist(), selected.nonzero()[:, 0].tolist()
    if not places:
        return box
    x, y, width, height = box * torch.tensor([columns, rows, columns, rows])
    offsets = [(x - place % columns - 0.5, y - place // columns - 0.5) for place in places]
    number = min(range(len(places)), key=lambda number: float(offsets[number][0] ** 2 + offsets[number][1] ** 2))
    if offsets[number][0] ** 2 + offsets[number][1] ** 2 > 4:
        return box
    geometry = torch.stack([*offsets[number], width.log(), height.log()])
    state = states[places[number]] + refinement.box_projection(geometry)
    state = refinement.activation_fn(refinement.dense2(refinement.activation_fn(refinement.dense1(state))))
    left, down, wider, higher = refinement.out_proj(state)
    refined = torch.stack(
        [
            (x + 2 * (left / 2).tanh()) / columns,
            (y + 2 * (down / 2).tanh()) / rows,
            width / columns * wider.tanh().exp(),
            height / rows * higher.tanh().exp(),
        ]
    )
    return refined.clamp(0, 1)


def _embed(embeddings, patches, shape, scale, selected):
    """For convolutions, nothing is where no patch is selected; only a patch itself always sees itself."""
    size = embeddings.grid_size
    grid = embeddings.position_embeddings.weight.T.reshape(1, -1, size, size)
    positions = nn.functional.interpolate(grid, size=shape.tolist(), mode="bilinear", align_corners=True)
    x = embeddings.projection(patches) + positions[0].flatten(1).T + embeddings.scale_embeddings.weight[scale]
    for convolution in embeddings.convolutions:
        reduced = convolution.reduction(convolution.layernorm(x))
        kernel = convolution.kernel.weight.unflatten(1, (3, 3, -1)).permute(0, 3, 1, 2)
        image = (reduced * selected[:, None]).T.reshape(1, -1, *shape.tolist())
        around = nn.functional.conv2d(image, kernel, convolution.kernel.bias, padding=1).flatten(2)[0].T
        around = around + (reduced * ~selected[:, None]) @ kernel[..., 1, 1].T
        x = x + convolution.dense(convolution.activation_fn(around))
    return x


def _to_children(values, shape):
    """(rows * columns, 4) values of 2 x 2 children to the row-major grid of the next scale."""
    rows, columns = shape.tolist()
    return values.reshape(rows, columns, 2, 2).permute(0, 2, 1, 3).flatten()


def _run(layers, tokens, groups):
    mask = torch.where(groups[:, None] >= groups[None, :], 0.0, -torch.inf).to(tokens.dtype)
    for layer in layers:
        attention, x = layer.attention, layer.layernorm_before(tokens)
        query, key, value = (
            projection(x).view(len(x), -1, attention.head_dim).transpose(0, 1)
            for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        weights = (query @ key.transpose(1, 2) * attention.head_dim**-0.5 + mask).softmax(-1)
        tokens = tokens + attention.o_proj((weights @ value).transpose(0, 1).flatten(1))
        tokens = tokens + layer.mlp(layer.layernorm_after(tokens))
    return tokens
