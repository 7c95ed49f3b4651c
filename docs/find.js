// Searches a built site as its search page does: node docs/find.js SITE WORDS...
// A line for each: the words, the first page, and where on it.
const fs = require("fs"), vm = require("vm"), path = require("path");
const [site, ...queries] = process.argv.slice(2);
const read = (...parts) => fs.readFileSync(path.join(site, ...parts), "utf8");
const nothing = { addEventListener() {}, getElementById: () => ({}), documentElement: { dataset: {} } };
const page = vm.createContext({
  document: nothing, addEventListener() {}, localStorage: { setItem() {} }, console, URLSearchParams,
  Documentation: { ready() {} }, _ready() {}, SPHINX_HIGHLIGHT_ENABLED: false, _: (text) => text,
});
page.window = page;
const scripts = ["language_data.js", "searchtools.js"];
for (const script of scripts)
  vm.runInContext(read("_static", script), page, { filename: script });
vm.runInContext("globalThis.Search = Search", page);
vm.runInContext(read("searchindex.js"), page);
for (const query of queries) {
  page.query = query;
  const found = vm.runInContext("Search._performSearch(...Search._parseQuery(query))", page);
  const shown = found.reverse().slice(0, 3).map(([name, , anchor, , score]) => `${name}${anchor} (${score})`);
  console.log(`${query}: ${shown.join(", ")}`);
}
