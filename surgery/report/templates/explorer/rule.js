// What `surgery plan` would do with one rule below the spec's own: the same steps in the same order.

// Returns {sites, matched, left, lost, parameters, trains, expect}, or raises Refusal in the words of the planner.
function applyRule(model, rule) {
  const wanted = new Names(model, rule.role, rule.target);
  const matched = model.sites.filter((site) => wanted.has(site.role, site));
  const missed = model.sites.filter(
    (site) => site.row.open.some((role) => wanted.has(role, site)) && !wanted.has(site.role, site),
  );
  if (missed.length) {
    const more = missed.length > 1 ? ` (and ${missed.length - 1} more)` : "";
    throw new Refusal(
      `${missed[0].name}${more} may hold ${missed[0].row.open.join(" or ")}, and nothing says how it is laid out: ` +
      "describe it in an architecture plugin, or name weights by target",
    );
  }
  const chosen = inLayers(model, matched, rule.layers.pieces);
  if (!chosen.length) throw new Refusal(nothingMatches(model, rule));
  const adapter = model.data.adapters.findIndex((one) => one.name === rule.adapter);
  const claimed = chosen.filter((site) => site.row.answers[adapter] !== null);
  if (!claimed.length) {
    throw new Refusal(`${count(chosen.length, "parameter")} match, and ${rule.adapter} can adapt none of them; the first is ` +
      `${chosen[0].name} in a host of kind ${chosen[0].row.host}`);
  }
  const kept = untangled(model, rule, claimed);
  const won = [], lost = {};
  for (const one of kept) {
    const winner = winnerOf(model, one);
    if (winner === undefined) won.push(one);
    else lost[winner] = (lost[winner] || 0) + 1;
  }
  if (!won.length) throw new Refusal(`the spec has won every site that the rule matches: ${lostWords(lost)}`);
  refuseMixedTies(model, won);
  return {
    won,
    sites: new Set(won.map((one) => one.site)),
    matched: chosen.length,
    left: chosen.length - claimed.length,
    shared: claimed.length - kept.length,
    lost,
    parameters: won.reduce((sum, one) => sum + one.site.row.size, 0),
    trains: trained(model, rule, adapter, won),
  };
}

class Names {
  constructor(model, role, target) {
    this.role = role && named("role", () => compilePattern(role, model.data.classes, model.sites.length));
    this.target = target && named("target", () => compilePattern(target, model.data.classes, 2 * model.sites.length));
    this.roles = new Map();
    this.names = new Map();
  }

  has(role, site) {
    if (this.role && !named("role", () => remembered(this.roles, role, this.role))) return false;
    if (!this.target) return true;
    return named("target", () => remembered(this.names, site.path, this.target) || remembered(this.names, site.name, this.target));
  }
}

function remembered(known, name, test) {
  if (!known.has(name)) known.set(name, test(name));
  return known.get(name);
}

function named(field, act) {
  try {
    return act();
  } catch (error) {
    if (error instanceof Refusal && !error.field) error.field = field;
    throw error;
  }
}

function inLayers(model, matched, pieces) {
  if (pieces === null || !matched.length) return matched;
  const stacks = new Set(matched.filter((site) => site.layer !== null).map((site) => site.stack));
  if (!stacks.size) stacks.add("");
  const chosen = {};
  for (const stack of stacks) chosen[stack] = named("layers", () => layersAmong(pieces, model.counts[stack] || 0));
  return matched.filter((site) => site.layer !== null && chosen[site.stack].has(site.layer));
}

function nothingMatches(model, rule) {
  if (rule.layers.pieces !== null) return "no site in these layers matches";
  if (rule.role && rule.target) return "no site matches role and target both";
  if (rule.role && !model.sites.some((site) => site.row.role)) return "no site matches: nobody knows this model's roles; write a target";
  return "no site matches; the pattern must match the whole " + (rule.role ? "role" : "path, or the path with the parameter's name");
}

// Decides tied names: all of them matched means shared; only some of them needs `tied:`.
function untangled(model, rule, sites) {
  const names = new Set(sites.map((site) => site.name));
  const kept = [];
  for (const site of sites) {
    const tied = site.row.tied;
    if (!tied.length) kept.push({site, tied: ""});
    else if (rule.tied === "untie") kept.push({site, tied: "untie"});
    else if (rule.tied === "share" || tied.every((name) => names.has(name))) {
      if (site.name === model.firstOf([site.name, ...tied].filter((name) => names.has(name)))) kept.push({site, tied: "share"});
    } else {
      const error = new Refusal(`${site.name} is tied to ${tied.join(", ")}, and the rule matches only the one name: ` +
        "share the tensor, or untie this name");
      error.field = "tied";
      throw error;
    }
  }
  return kept;
}

function winnerOf(model, one) {
  const name = one.tied === "untie" ? one.site.name : model.canonical(one.site);
  return wonBy(model, name, one.site.row.slice ? one.site.role : "");
}

function wonBy(model, name, role) {
  const winners = model.data.spec ? model.data.spec.winners : {};
  const of = (key) => (Object.hasOwn(winners, key) ? winners[key] : undefined);
  return of(`${role}\n${name}`) ?? (role ? of(`\n${name}`) : undefined);
}

function refuseMixedTies(model, won) {
  const modes = model.data.spec ? model.data.spec.modes : {};
  for (const {site, tied} of won) {
    const name = tied ? model.canonical(site) : "";
    const other = tied && Object.hasOwn(modes, name) ? modes[name] : tied;
    if (other !== tied) {
      const error = new Refusal(`the spec says tied: ${other} for the tensor of ${site.name}, this rule says tied: ${tied}`);
      error.field = "tied";
      throw error;
    }
  }
}

// Returns how many numbers the adapter trains with the options that are written out; null where one is still to be given.
function trained(model, rule, adapter, won) {
  const free = new Set(won.map((one) => one.site));
  let sum = 0;
  for (const {site, tied} of won) {
    let answer = site.row.answers[adapter], size = site.row.size;
    const parts = site.row.slice ? model.byName.get(site.name) : [];
    const whole = parts.length ? parts[0].row.wholes[adapter] : null;
    if (whole !== null && parts.every((part) => free.has(part))) {
      if (site !== parts[0]) continue;
      answer = whole;
      size = parts.reduce((all, part) => all + part.row.size, 0);
    }
    if (answer === true || sum === null) {
      sum = null;
      continue;
    }
    if (answer.trouble) throw new Refusal(`${rule.adapter} on ${site.name}: ${answer.trouble}`);
    if (answer.trains > size) {
      throw new Refusal(`${rule.adapter} would train ${number(answer.trains)} numbers for ${site.name}, which has only ` +
        `${number(size)}; leave it out, or take another adapter`);
    }
    for (const parameter of answer.companions) {
      const other = model.beside.get(`${site.path}\n${site.role}`).find((one) => one.row.parameter === parameter);
      const name = tied === "untie" ? other.name : model.canonical(other);
      const winner = wonBy(model, name, other.row.slice ? other.role : "");
      if (winner !== undefined) throw new Refusal(`it also changes ${other.name}, which rules[${winner}] has won`);
      if (other.row.tied.length && !tied) throw new Refusal(`it also changes ${other.name}, which is tied to ${other.row.tied.join(", ")}`);
    }
    sum += answer.trains;
  }
  return sum;
}

function lostWords(lost) {
  return Object.entries(lost).map(([rule, sites]) => `rules[${rule}] took ${number(sites)}`).join(", ");
}

// The rule as YAML. `expect` holds the planner to what lit up here.
function ruleYaml(model, rule, result) {
  const adapter = model.data.adapters.find((one) => one.name === rule.adapter);
  const quoted = (text) => `'${text.replaceAll("'", "''")}'`;
  const lines = [];
  if (rule.role) lines.push(`role: ${quoted(rule.role)}`);
  if (rule.target) lines.push(`target: ${quoted(rule.target)}`);
  if (rule.layers.pieces !== null) lines.push(`layers: ${rule.layers.yaml}`);
  if (rule.tied !== "error") lines.push(`tied: ${rule.tied}`);
  lines.push(`adapter: ${quoted(rule.adapter)}`.replace(/'(?!(?:null|true|false)')([a-z][a-z-]*)'$/, "$1"));
  for (const option of adapter.options) {
    const text = `${option.name}: ${option.value ?? ""}`.trim();
    const note = `${option.required ? "required: " : ""}${option.description}`.trim();
    lines.push(`${option.given || option.required ? "" : "# "}${text}${note ? `  # ${note}` : ""}`);
  }
  lines.push(`expect: ${result.won.length}`);
  return lines.map((line, index) => `${index ? "  " : "- "}${line}`).join("\n") + "\n";
}

function number(value) {
  return String(value).replace(/\B(?=(\d{3})+$)/g, ",");
}

function count(value, noun) {
  return `${number(value)} ${noun}${value === 1 ? "" : "s"}`;
}
