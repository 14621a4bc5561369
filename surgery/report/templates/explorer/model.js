// The model's sites, unfolded from the rows of layers that look alike. Names are made here once; the page shows rows.

class Model {
  constructor(data) {
    this.data = data;
    this.sites = [];
    this.counts = {}; // stack -> number of layers, for `layers:`
    for (const group of data.groups) {
      for (const row of group.rows) {
        row.sites = (group.layers || [null]).map((layer) => this.site(group, row, layer));
        this.sites.push(...row.sites);
      }
    }
    this.byName = new Map();
    this.beside = new Map();
    for (const site of this.sites) {
      push(this.byName, site.name, site);
      push(this.beside, `${site.path}\n${site.role}`, site);
    }
  }

  site(group, row, number) {
    const start = row.base.slice(0, -1) + (row.base ? number : "");
    const name = [start, row.inside].filter((part) => part !== "").join(".");
    const path = name === row.parameter ? "" : name.slice(0, -row.parameter.length - 1);
    const layer = row.in_layers ? number : null, stack = row.in_layers ? group.stack : "";
    if (layer !== null) this.counts[stack] = Math.max(this.counts[stack] || 0, layer + 1);
    const role = row.role || `other.${path || row.parameter}`;
    return {row, name, path, role, layer, stack, number, key: row.slice ? `${name}:${role}` : name};
  }

  // The first of several names of one tensor: what it is called, not an alias.
  firstOf(names) {
    return names.reduce((best, name) => (this.data.ranks[name] < this.data.ranks[best] ? name : best));
  }

  canonical(site) {
    return site.row.tied.length ? this.firstOf([site.name, ...site.row.tied]) : site.name;
  }
}

function push(map, key, value) {
  if (!map.has(key)) map.set(key, []);
  map.get(key).push(value);
}
