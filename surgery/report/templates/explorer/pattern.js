// The spec's regular expressions. A browser's own differ from them in many corners (\w, $, (?P<name>), {,3}, flags) and
// may take for ever, so the page reads and matches patterns itself: what it accepts means what `surgery plan` means, and
// what it does not it refuses in words. Back references and possessive repeats, which order of search would decide, are
// refused; all the rest is a question of yes or no.

class Refusal extends Error {}

const MOST_CHARACTERS = 512, MOST_UNROLLED = 1000, DEEPEST = 20; // as surgery/spec/_pattern_scan.py
const STEPS_FOR_A_NAME = 50000; // far below what 50 ms allow surgery
const NOT_IN_YAML = /[\u0000-\u0008\u000a-\u001f\u007f-\u009f\u2028\u2029\ufeff\ufffe\uffff]|[\ud800-\udfff]/u;
const GROUP = /^\(\?(?::|=|!|<=|<!|P?<[A-Za-z_][A-Za-z0-9_]{0,31}>|([ias]{1,3}):)/;
const REFUSED_GROUPS = [
  ["(?>", "an atomic group"], ["(?P=", "a back reference"], ["(?P>", "a call of a group"], ["(?#", "a comment"],
  ["(?(", "a condition"], ["(?|", "a branch reset"], ["(?R", "recursion"], ["(?-", "a flag that is switched off"],
  ["(?<", "a group with this name"], ["(?P<", "a group with this name"],
];

class PatternReader {
  constructor(text, classes) {
    this.chars = Array.from(text);
    this.at = 0;
    this.classes = classes; // of the characters that occur in names: word, digit, space, fold
    this.sizes = [{size: 1, last: 0}]; // of open groups, unrolled
  }

  read() {
    if (this.chars.length === 0) this.refuse("it is empty; .* matches every name");
    if (this.chars.length > MOST_CHARACTERS) this.refuse(`it has more than ${MOST_CHARACTERS} characters`);
    const bad = NOT_IN_YAML.exec(this.chars.join(""));
    if (bad) this.refuse(`it holds the character U+${bad[0].codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}`);
    let flags = {i: false, a: false, s: false};
    const first = /^\(\?([ias]{1,3})\)/.exec(this.rest());
    if (first) {
      flags = withFlags(flags, first[1]);
      this.at += first[0].length;
    }
    const node = this.alternatives(flags);
    if (this.at < this.chars.length) this.refuse("a ) was never opened; \\) means the character");
    return node;
  }

  refuse(why) {
    throw new Refusal(`at character ${Math.min(this.at, this.chars.length) + 1}: ${why}`);
  }

  rest() {
    return this.chars.slice(this.at, this.at + 48).join("");
  }

  add(size) {
    const group = this.sizes[this.sizes.length - 1];
    group.size += size;
    group.last = size;
    if (group.size > MOST_UNROLLED) this.refuse(`its counted repeats unroll to more than ${MOST_UNROLLED} items`);
  }

  alternatives(flags) {
    const choices = [this.sequence(flags)];
    while (this.chars[this.at] === "|") {
      this.at += 1;
      choices.push(this.sequence(flags));
    }
    return choices.length === 1 ? choices[0] : {kind: "any", choices};
  }

  sequence(flags) {
    const items = [];
    while (this.at < this.chars.length && this.chars[this.at] !== "|" && this.chars[this.at] !== ")") {
      const item = this.item(flags);
      items.push(this.repeated(item));
    }
    return {kind: "all", items};
  }

  item(flags) {
    const char = this.chars[this.at];
    if (char === "(") return this.group(flags);
    if (char === "[") return this.set(flags);
    if (char === "\\") return this.escape(flags);
    if (char === "{" && !this.count()) this.refuse("a { does not start a repeat such as {2}; \\{ means the character");
    if ("*+?{".includes(char)) this.refuse("there is nothing to repeat");
    this.at += 1;
    this.add(1);
    if (char === ".") return {kind: "char", test: flags.s ? () => true : (one) => one !== "\n"};
    if (char === "^") return {kind: "start"};
    if (char === "$") return {kind: "end", newline: true};
    return this.literal(char, flags);
  }

  literal(char, flags) {
    return {kind: "char", test: this.insensitive((one) => one === char, char, flags)};
  }

  // With the flag i a character is looked up in all its cases; beyond ASCII the page does not know them.
  insensitive(test, text, flags) {
    if (!flags.i) return test;
    if (/[^\u0000-\u007f]/.test(text)) this.refuse("(?i) is understood here for ASCII letters only; surgery plan knows more");
    const fold = flags.a ? {} : this.classes.fold;
    return (one) => {
      if (test(one)) return true;
      if (/[A-Za-z]/.test(one)) return test(one.toLowerCase()) || test(one.toUpperCase());
      return (fold[one] || []).some((letter) => test(letter));
    };
  }

  count() {
    return /^\{(?:(\d{1,9})(?:(,)(\d{0,9}))?|,(\d{1,9}))\}/.exec(this.rest());
  }

  repeated(item) {
    const char = this.chars[this.at];
    const counted = char === "{" ? this.count() : null;
    if (char === "{" && !counted) this.refuse("a { does not start a repeat such as {2}; \\{ means the character");
    if (!counted && !(char && "*+?".includes(char))) return item;
    if (!["char", "all", "any", "many"].includes(item.kind)) this.refuse("a repeat of what has no width is not understood here");
    let low = char === "+" ? 1 : 0, high = char === "?" ? 1 : Infinity;
    if (counted) {
      low = Number(counted[1] || 0);
      high = counted[4] !== undefined ? Number(counted[4]) : counted[2] ? (counted[3] ? Number(counted[3]) : Infinity) : low;
      if (low > high) this.refuse("the repeat's first number is greater than its second");
      const group = this.sizes[this.sizes.length - 1];
      const most = Math.max(low, high === Infinity ? 0 : high);
      group.last = Math.max(group.last, 1);
      group.size += group.last * Math.max(most - 1, 0);
      group.last *= Math.max(most, 1);
      if (group.size > MOST_UNROLLED) this.refuse(`its counted repeats unroll to more than ${MOST_UNROLLED} items`);
    }
    this.at += counted ? counted[0].length : 1;
    const next = this.chars[this.at];
    if (next === "+") this.refuse("a possessive repeat is not understood here; leave the second + out");
    if (next === "?") this.at += 1; // lazy: the same names match
    if (this.chars[this.at] && "*+?{".includes(this.chars[this.at])) this.refuse("a repeat of a repeat needs (?: ) around the first");
    return {kind: "many", item, low, high};
  }

  group(flags) {
    const rest = this.rest();
    let opening = "(", inner = flags;
    if (rest.startsWith("(?")) {
      const found = GROUP.exec(rest);
      if (/^\(\?[ias]{1,3}\)/.test(rest)) this.refuse("flags are understood here at the beginning only; (?i: ) holds for a part");
      const known = REFUSED_GROUPS.find(([start]) => rest.startsWith(start));
      if (!found) this.refuse(`${known ? known[1] : `the group ${rest.slice(0, 4)}`} is not understood here; use ( ), (?: ), (?= ), (?! ), (?<= ), (?<! )`);
      opening = found[0];
      if (found[1]) inner = withFlags(flags, found[1]);
    } else if (rest.startsWith("(*")) {
      this.refuse("a verb such as (*FAIL) is not supported; \\* means the character");
    }
    const opened = this.at;
    if (this.sizes.length > DEEPEST) this.refuse(`its brackets are nested more than ${DEEPEST} deep`);
    this.sizes.push({size: 1, last: 0});
    this.at += opening.length;
    const node = this.alternatives(inner);
    if (this.at >= this.chars.length) {
      this.at = opened;
      this.refuse("a ( is never closed; \\( means the character");
    }
    this.at += 1;
    this.add(this.sizes.pop().size);
    if (opening === "(?=" || opening === "(?!") return {kind: "ahead", item: node, wanted: opening === "(?="};
    if (opening === "(?<=" || opening === "(?<!") return {kind: "behind", item: node, wanted: opening === "(?<="};
    return node.kind === "all" || node.kind === "any" ? node : {kind: "all", items: [node]};
  }

  escape(flags) {
    const char = this.chars[this.at + 1];
    if (char === undefined) this.refuse("it ends in a single \\; \\\\ means the character");
    if ("dDwWsS".includes(char)) {
      const test = this.named(char, flags);
      this.at += 2;
      this.add(1);
      return {kind: "char", test};
    }
    if (/[1-9]/.test(char)) this.refuse("a back reference is not understood here");
    const literals = {n: "\n", t: "\t", r: "\r"};
    if (/[A-Za-z0-9]/.test(char) && !"bBAZ".includes(char) && !literals[char]) this.refuse(`the escape \\${char} is not supported`);
    if (/[^\u0000-\u007f]/.test(char)) this.refuse("only ASCII symbols are escaped; write the character itself");
    this.at += 2;
    this.add(1);
    if (char === "A") return {kind: "start"};
    if (char === "Z") return {kind: "end", newline: false};
    if (char === "b" || char === "B") return {kind: "edge", word: this.named("w", flags), wanted: char === "b"};
    return this.literal(literals[char] || char, flags);
  }

  named(letter, flags) {
    const more = flags.a ? {word: "", digit: "", space: ""} : this.classes;
    const kinds = {d: [/[0-9]/, more.digit], w: [/[A-Za-z0-9_]/, more.word], s: [/[ \t\n\r\f\v]/, more.space]};
    const [ascii, others] = kinds[letter.toLowerCase()];
    const test = (one) => (one.codePointAt(0) < 128 ? ascii.test(one) : others.includes(one));
    return letter === letter.toLowerCase() ? test : (one) => !test(one);
  }

  set(flags) {
    const opened = this.at;
    this.at += 1;
    const negated = this.chars[this.at] === "^";
    if (negated) this.at += 1;
    const classes = [], ranges = [];
    let text = "", first = true;
    while (first || this.chars[this.at] !== "]") {
      if (this.at >= this.chars.length) {
        this.at = opened;
        this.refuse("a [ is never closed; \\[ means the character");
      }
      first = false;
      const low = this.member(flags);
      if (typeof low === "function") {
        classes.push(low);
        if (this.chars[this.at] === "-" && this.chars[this.at + 1] !== "]") this.refuse("a range that begins with a class is not understood here; write \\-");
        continue;
      }
      let high = low;
      if (this.chars[this.at] === "-" && this.chars[this.at + 1] !== "]" && this.at + 1 < this.chars.length) {
        this.at += 1;
        high = this.member(flags);
        if (typeof high === "function") this.refuse("a range that ends in a class is not understood here; write \\-");
        if (low.codePointAt(0) > high.codePointAt(0)) this.refuse("the range's first character comes after its second");
      }
      text += low + high;
      ranges.push([low.codePointAt(0), high.codePointAt(0)]);
    }
    this.at += 1;
    this.add(1);
    const plain = (one) => ranges.some(([low, high]) => low <= one.codePointAt(0) && one.codePointAt(0) <= high);
    const listed = this.insensitive(plain, text, flags);
    const test = (one) => listed(one) || classes.some((named) => named(one));
    return {kind: "char", test: negated ? (one) => !test(one) : test};
  }

  // One member of a set: a character, or the test of a class such as \d.
  member(flags) {
    const char = this.chars[this.at], next = this.chars[this.at + 1];
    if (char === "[") this.refuse("a [ in a set is not understood here; write \\[");
    if ("-&|~".includes(char) && next === char) this.refuse(`${char}${char} in a set is not understood here; write \\${char}\\${char}`);
    if (char !== "\\") {
      this.at += 1;
      return char;
    }
    if (next === undefined) this.refuse("a [ is never closed; \\[ means the character");
    if ("dDwWsS".includes(next)) {
      this.at += 2;
      return this.named(next, flags);
    }
    const literals = {n: "\n", t: "\t", r: "\r"};
    if (/[A-Za-z0-9]/.test(next) && !literals[next]) this.refuse(`the escape \\${next} in a set is not understood here`);
    if (/[^\u0000-\u007f]/.test(next)) this.refuse("only ASCII symbols are escaped; write the character itself");
    this.at += 2;
    return literals[next] || next;
  }
}

function withFlags(flags, letters) {
  const changed = {...flags};
  for (const letter of letters) changed[letter] = true;
  return changed;
}

// A matcher of (characters, index, what comes after) for a node; `steps.left` bounds the search.
function matcherOf(node, steps) {
  const spend = () => {
    steps.left -= 1;
    if (steps.left < 0) throw new Refusal("it takes too long; avoid a repeat inside a repeat such as (a+)+ and several .*");
  };
  if (node.kind === "char") {
    return (chars, at, then) => {
      spend();
      return at < chars.length && node.test(chars[at]) && then(at + 1);
    };
  }
  if (node.kind === "start") return (chars, at, then) => at === 0 && then(at);
  if (node.kind === "end") {
    return (chars, at, then) =>
      (at === chars.length || (node.newline && at === chars.length - 1 && chars[at] === "\n")) && then(at);
  }
  if (node.kind === "edge") {
    return (chars, at, then) => {
      const before = at > 0 && node.word(chars[at - 1]), after = at < chars.length && node.word(chars[at]);
      return (before !== after) === node.wanted && then(at);
    };
  }
  if (node.kind === "all") {
    return node.items.map((item) => matcherOf(item, steps)).reduceRight(
      (after, one) => (chars, at, then) => one(chars, at, (next) => after(chars, next, then)),
      (chars, at, then) => then(at),
    );
  }
  if (node.kind === "any") {
    const choices = node.choices.map((choice) => matcherOf(choice, steps));
    return (chars, at, then) => choices.some((choice) => choice(chars, at, then));
  }
  const inner = matcherOf(node.item, steps);
  if (node.kind === "ahead") return (chars, at, then) => inner(chars, at, () => true) === node.wanted && then(at);
  if (node.kind === "behind") {
    return (chars, at, then) => {
      let found = false;
      for (let start = at; start >= 0 && !found; start -= 1) found = inner(chars, start, (end) => end === at);
      return found === node.wanted && then(at);
    };
  }
  return (chars, at, then) => {
    const again = (from, times) => {
      spend();
      // A round that takes nothing would go on for ever, and adds nothing.
      const more = (next) => (next > from || times < node.low) && again(next, times + 1);
      return (times < node.high && inner(chars, from, more)) || (times >= node.low && then(from));
    };
    return again(at, 0);
  };
}

// Returns a test of whole names, for about `names` of them. Raises Refusal, at once or when names take too long.
function compilePattern(text, classes, names) {
  const steps = {left: 0};
  const matcher = matcherOf(new PatternReader(text, classes).read(), steps);
  let total = 2000000 + 1000 * names;
  return (name) => {
    const most = Math.min(STEPS_FOR_A_NAME, total);
    steps.left = most;
    const chars = Array.from(name);
    try {
      return matcher(chars, 0, (end) => end === chars.length);
    } catch (error) {
      if (error instanceof RangeError) throw new Refusal("a name is too long to be matched here; surgery plan can");
      throw error;
    } finally {
      total -= most - steps.left;
    }
  };
}
