// `layers:` of a rule: all | "0-5" | "0-2,5" | [0, 3, -1] | first 4 | last 4, as surgery/spec/_layers.py reads it.

const LAYER_FORMS = 'all, first 4, last 4, 0-5, 0-2,5 or [0, 3, -1]';
const MOST_LAYER_ITEMS = 1000;

// Returns {yaml, pieces}: how the rule writes it, and [from, to] pairs, or null for every layer.
function readLayers(text) {
  let kept = text.trim().replace(/[ \t]+/g, " ");
  const list = /^\[(.*)\]$/.exec(kept);
  if (list) return readLayerList(list[1]);
  kept = kept.replace(/^(["'])(.*)\1$/, "$2").trim();
  if (kept === "" || kept === "all") return {yaml: "all", pieces: null};
  const ends = /^(first|last) +(\d{1,5})$/.exec(kept);
  if (ends) {
    const number = Number(ends[2]);
    if (number === 0) throw new Refusal(`must name at least one layer, not ${kept}`);
    return {yaml: kept, pieces: [ends[1] === "first" ? [0, number - 1] : [-number, -1]]};
  }
  const items = kept.split(",");
  if (items.length > MOST_LAYER_ITEMS) throw new Refusal(`must name at most ${MOST_LAYER_ITEMS} layers or ranges`);
  const pieces = items.map((item) => {
    const match = /^ *(?:(\d{1,5})-(\d{1,5})|(-?\d{1,5})) *$/.exec(item);
    if (!match) throw new Refusal(`must be ${LAYER_FORMS}`);
    if (match[3] !== undefined) return [Number(match[3]), Number(match[3])];
    const low = Number(match[1]), high = Number(match[2]);
    if (low > high) throw new Refusal(`must run from low to high: ${high}-${low}`);
    return [low, high];
  });
  return {yaml: `"${kept}"`, pieces};
}

function readLayerList(text) {
  if (text.trim() === "") throw new Refusal("must name at least one layer, not the empty list");
  const items = text.replace(/,\s*$/, "").split(",").map((item) => item.trim());
  if (items.length > MOST_LAYER_ITEMS) throw new Refusal(`must name at most ${MOST_LAYER_ITEMS} layers`);
  if (!items.every((item) => /^-?(0|[1-9]\d{0,4})$/.test(item))) throw new Refusal("must hold whole numbers only: [0, 3, -1]");
  return {yaml: `[${items.join(", ")}]`, pieces: items.map((item) => [Number(item), Number(item)])};
}

// Returns the layers among `count` that the pieces name.
function layersAmong(pieces, count) {
  const chosen = new Set();
  const within = (layer) => {
    if (layer < -count || layer >= count) {
      const known = count ? `the layers are 0 to ${count - 1}` : "there are no layers here";
      throw new Refusal(`layer ${layer} does not exist: ${known}`);
    }
    return layer < 0 ? layer + count : layer;
  };
  for (const [low, high] of pieces) {
    const last = within(high);
    for (let layer = within(low); layer <= last; layer += 1) chosen.add(layer);
  }
  return chosen;
}
