// The page: a tree whose lines are made when they are first seen, and a form that lights them up.

const $ = (id) => document.getElementById(id);

function element(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = visible(text);
  return made;
}

// Characters that would not show, or turn text around, are written as escapes.
function visible(text) {
  return String(text).replace(/[\u0000-\u001f\u007f-\u009f\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]/g,
    (char) => `\\u${char.charCodeAt(0).toString(16).padStart(4, "0")}`);
}

// Returns `0-5, 7` for sorted numbers.
function rangesOf(numbers) {
  const spans = [];
  for (const one of numbers) {
    const last = spans[spans.length - 1];
    if (last && last[1] === one - 1) last[1] = one;
    else spans.push([one, one]);
  }
  return spans.map(([low, high]) => (low === high ? `${low}` : `${low}-${high}`)).join(", ");
}

class Tree {
  constructor(model, root, useRow) {
    this.model = model;
    this.useRow = useRow;
    this.result = null;
    this.rows = new Map(); // row -> its line, where there is one yet
    this.groups = [];
    for (const group of model.data.groups) {
      if (!group.layers) {
        root.append(...group.rows.map((row) => this.line(row)));
        continue;
      }
      root.append(this.group(group));
    }
  }

  group(group) {
    const box = element("details", "group"), summary = element("summary");
    const lit = element("span", "tag lit");
    lit.hidden = true;
    summary.append(element("b", "", group.title), element("span", "name", group.base), element("span", "size", group.size), lit);
    box.append(summary);
    const fill = () => {
      if (box.children.length === 1) box.append(...group.rows.map((row) => this.line(row)));
    };
    box.addEventListener("toggle", () => box.open && fill());
    this.groups.push({group, box, lit, fill});
    return box;
  }

  line(row) {
    const box = element("details", "row"), summary = element("summary");
    const notes = element("span", "notes");
    const lit = element("span", "tag lit");
    lit.hidden = true;
    notes.append(lit);
    if (row.mark) notes.append(element("span", "tag won", row.mark));
    if (row.tied.length) notes.append(element("span", "tag", `= ${row.tied.join(", ")}`));
    if (row.open.length) notes.append(element("span", "tag open", `may hold ${row.open.join(" or ")}`));
    summary.append(
      element("span", row.role ? "role" : "role other", row.role || "other"),
      element("span", "name", row.name + row.cut),
      element("span", "shape", row.shape),
      element("span", "host", `${row.host || "?"}${this.model.data.dtype ? "" : ` ${row.dtype}`}`),
      element("span", "size", row.size_text),
      notes,
    );
    box.append(summary);
    const shown = {box, lit, inside: null};
    box.addEventListener("toggle", () => {
      if (!box.open || shown.inside) return;
      shown.inside = this.inside(row);
      box.append(shown.inside.box);
      this.paint(row);
    });
    this.rows.set(row, shown);
    this.paint(row);
    return box;
  }

  inside(row) {
    const box = element("div", "inside"), list = element("dl");
    const facts = [
      ["role", row.role || row.sites[0].role], ["shape", row.shape + (row.cut ? `, entries ${row.cut} of the parameter` : "")],
      ["dtype", row.dtype], ["host", row.host || "unknown"], ["size", `${count(row.size, "parameter")}, ${row.bytes_text}`],
      ["role from", this.model.data.sources[row.role] ? `inferred from ${this.model.data.sources[row.role]}` : ""],
      ["same tensor as", row.tied.join(", ")], ["may hold", row.open.join(" or ")], ["spec", row.mark || ""],
    ];
    for (const [name, value] of facts) if (value) list.append(element("dt", "", name), element("dd", "", value));
    const useRole = element("button", "", "Use this role"), useTarget = element("button", "", "Use this path");
    useRole.type = useTarget.type = "button";
    useRole.addEventListener("click", () => this.useRow("role", escaped(row.sites[0].role)));
    const star = row.base ? `${escaped(row.base.slice(0, -1))}\\d+${row.inside ? "\\." : ""}` : "";
    useTarget.addEventListener("click", () => this.useRow("target", star + escaped(row.inside)));
    const names = element("ol");
    const items = row.sites.map((site) => element("li", "name", site.name));
    names.append(...items);
    names.tabIndex = 0;
    names.setAttribute("role", "region");
    names.setAttribute("aria-label", "full names");
    box.append(list, ...(row.role ? [useRole] : []), useTarget, names);
    return {box, items};
  }

  show(result) {
    this.result = result;
    for (const row of this.rows.keys()) this.paint(row);
    for (const {group, box, lit} of this.groups) {
      const sites = group.rows.reduce((sum, row) => sum + this.litSites(row).length, 0);
      box.classList.toggle("lit", sites > 0);
      lit.hidden = !sites;
      lit.textContent = sites ? `${count(sites, "site")} light up`.replace("1 site light", "1 site lights") : "";
    }
  }

  litSites(row) {
    return this.result ? row.sites.filter((site) => this.result.sites.has(site)) : [];
  }

  paint(row) {
    const {box, lit, inside} = this.rows.get(row);
    const sites = this.litSites(row);
    box.classList.toggle("lit", sites.length > 0);
    lit.hidden = !sites.length;
    const where = sites.length && sites[0].number !== null ? ` in ${sites.length === 1 ? "layer" : "layers"} ${rangesOf(sites.map((site) => site.number).sort((a, b) => a - b))}` : "";
    lit.textContent = sites.length ? `lights up${sites.length < row.sites.length ? where : ""}` : "";
    if (inside) inside.items.forEach((item, index) => item.classList.toggle("lit", sites.includes(row.sites[index])));
  }

  openAll(isOpen) {
    for (const {box, fill} of this.groups) {
      if (isOpen) fill();
      box.open = isOpen;
    }
  }
}

// A regular expression for exactly this text.
function escaped(text) {
  return text.replace(/[\\^$.*+?()[\]{}|]/g, "\\$&");
}

class Form {
  constructor(model, tree) {
    this.model = model;
    this.tree = tree;
    this.fields = ["role", "target", "layers", "adapter", "tied"];
    for (const adapter of model.data.adapters) {
      const option = element("option", "", adapter.name);
      option.value = adapter.name;
      option.title = adapter.summary;
      $("adapter").append(option);
    }
    const roles = new Set(model.sites.filter((site) => site.row.role).map((site) => site.role));
    $("roles").append(...[...roles].map((role) => Object.assign(document.createElement("option"), {value: escaped(role)})));
    for (const field of this.fields) $(field).addEventListener("input", () => this.update());
    $("copy").addEventListener("click", () => this.copy());
    this.update();
  }

  set(field, value) {
    $(field).value = value;
    this.update();
    $(field).focus();
  }

  read() {
    return {
      role: $("role").value,
      target: $("target").value,
      layers: named("layers", () => readLayers($("layers").value)),
      adapter: $("adapter").value,
      tied: $("tied").value,
    };
  }

  update() {
    let result = null, error = null, rule = null;
    const isEmpty = !$("role").value && !$("target").value;
    try {
      if (!this.model.data.adapters.length) throw new Refusal("no adapter is installed");
      rule = this.read();
      if (!isEmpty) result = applyRule(this.model, rule);
    } catch (problem) {
      if (!(problem instanceof Refusal)) throw problem;
      error = problem;
    }
    this.result = result;
    for (const field of this.fields) {
      const isWrong = error !== null && error.field === field;
      $(field).setAttribute("aria-invalid", isWrong);
      $(`${field}-said`).textContent = isWrong ? visible(error.message) : "";
    }
    this.tree.show(result);
    const adapter = this.model.data.adapters.find((one) => one.name === $("adapter").value);
    $("status").className = error ? "bad" : result ? "lit" : "";
    $("status").replaceChildren(...this.words(result, error, adapter));
    this.yaml = result ? ruleYaml(this.model, rule, result) : "";
    $("yaml").textContent = this.yaml;
    $("copy").disabled = !result;
    $("copy").textContent = "Copy rule";
  }

  words(result, error, adapter) {
    if (error) return [element("strong", "", "Nothing lights up: "), error.field ? visible(`${error.field} ${error.message}`) : visible(error.message)];
    if (!result) return [visible(`Type a role or a target, and what a rule would touch lights up below. ${adapter.name}: ${adapter.summary}.`)];
    const parts = [` with ${count(result.parameters, "parameter")}`];
    const options = adapter.options.filter((one) => one.given && one.required).map((one) => ` ${one.name} ${one.value}`).join(",");
    if (result.trains !== null) parts.push(`; ${adapter.name}${options} trains ${number(result.trains)}`);
    else parts.push(`; what ${adapter.name} trains depends on options that are still to be written`);
    parts.push(".");
    if (result.shared) parts.push(` ${count(result.shared, "other name")} of the same tensors share${result.shared === 1 ? "s" : ""} them.`);
    if (result.left) parts.push(` ${count(result.left, "matched parameter")} ${result.left === 1 ? "is" : "are"} left alone: ${adapter.name} does not adapt ${result.left === 1 ? "it" : "them"}.`);
    if (Object.keys(result.lost).length) parts.push(` The spec has won others: ${lostWords(result.lost)}.`);
    const lit = result.won.length;
    return [element("strong", "", lit === 1 ? "1 site lights up" : `${number(lit)} sites light up`), visible(parts.join(""))];
  }

  async copy() {
    try {
      await navigator.clipboard.writeText(this.yaml);
      $("copy").textContent = "Copied";
    } catch {
      // Without the right to write to the clipboard, the selected text can be copied by hand.
      const range = document.createRange();
      range.selectNodeContents($("yaml"));
      getSelection().removeAllRanges();
      getSelection().addRange(range);
      $("copy").textContent = document.execCommand("copy") ? "Copied" : "Selected: press Ctrl+C";
    }
  }
}

const model = new Model(JSON.parse($("data").textContent));
let form = null;
const tree = new Tree(model, $("tree"), (field, value) => form.set(field, value));
form = new Form(model, tree);
$("open-all").addEventListener("click", () => tree.openAll(true));
$("close-all").addEventListener("click", () => tree.openAll(false));
$("only").addEventListener("change", () => $("tree").classList.toggle("only-lit", $("only").checked));
if (model.data.groups.reduce((sum, group) => sum + group.rows.length, 0) <= 60) tree.openAll(true);
// For whoever drives the page by a script of their own.
window.explorer = {model, applyRule, compilePattern, readLayers, ruleYaml, Refusal};
