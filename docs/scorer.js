// How the site's search weighs what it finds; numbers as in Sphinx but for exact names of objects,
// which come right after a page of that name (100, an entry of the index), functions and classes
// before methods and attributes. The changelog, which has all words, comes last.
var Scorer = {
  score: ([page, , , description, score]) => {
    if (/^Python (method|property|attribute)/.test(description || "")) return score - 20;
    return page === "changelog" ? score - 4 : score;
  },
  objNameMatch: 80,
  objPartialMatch: 6,
  objPrio: { 0: 15, 1: 5, 2: -5 },
  objPrioDefault: 0,
  title: 15,
  partialTitle: 7,
  term: 5,
  partialTerm: 2,
};
