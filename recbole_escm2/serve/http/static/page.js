"use strict";

const MEANING = {
  pctr: "click",
  pcvr: "conversion, once clicked",
  pctcvr: "click and conversion",
};
const element = (id) => document.getElementById(id);
const made = (tag, properties) => Object.assign(document.createElement(tag), properties);

// ---- the form: an input for each field of the model
const isList = (field) => field.kind.endsWith("_seq");
const isNumber = (field) => field.kind.startsWith("float");

function inputOf(field, place) {
  const choices = field.choices || [];
  const input = made(isList(field) ? "textarea" : "input", {
    id: `field-${place}`,
    name: field.name,
    title: field.takes,
    value: choices.length ? String(choices[0]) : "",
  });
  if (isNumber(field) && !isList(field)) input.inputMode = "decimal";
  const box = made("div", {});
  box.append(made("label", { htmlFor: input.id, textContent: field.name }), input);
  if (!isList(field) && choices.length > 1) {
    const list = made("datalist", { id: `choices-${place}` });
    list.append(...choices.map((value) => made("option", { value: String(value) })));
    input.setAttribute("list", list.id);
    box.append(list);
  }
  return box;
}

// ---- what stands in it, as JSON
const asNumber = (text) => (text.trim() === "" || Number.isNaN(Number(text)) ? text : Number(text));

function weighted(line) {
  const [, token, weight] = line.match(/^(.*\S)\s+(\S+)$/) || [null, line, ""];
  return weight !== "" && !Number.isNaN(Number(weight)) ? [token, Number(weight)] : line;
}

function valueOf(field, text) {
  if (isList(field)) {
    const lines = text.split("\n").filter((line) => line !== "");
    return lines.map(field.weighted ? weighted : isNumber(field) ? asNumber : String);
  }
  if (text === "") return null;
  return isNumber(field) ? asNumber(text) : text;
}

// ---- the answer
function show(answer, row) {
  const { support, valid, unknown, ...probabilities } = answer.rows[0];
  element("probabilities").replaceChildren(
    ...Object.entries(probabilities).flatMap(([name, value]) => {
      const term = made("dt", { textContent: `${name}: ${MEANING[name]}` });
      term.append(made("b", { id: name, textContent: value.toPrecision(4) }));
      const bar = made("dd", {});
      bar.append(made("meter", { min: 0, max: 1, value, ariaLabel: name }));
      return [term, bar];
    }),
  );
  const share = support === null ? "" : `${(100 * support).toFixed(1)} %`;
  element("validity").textContent =
    valid === null
      ? "This model has no pCTR, so that nobody can say whether clicks like this one were seen."
      : valid
        ? `Valid: ${share} of the training's clicks had a pCTR as low as this row's, or lower.`
        : `Not valid: ${share} of the training's clicks had a pCTR as low as this row's, or lower. ` +
          "Clicks were hardly seen there, and pcvr is a guess.";
  element("validity").className = valid === false ? "bad" : "";
  element("unknown").textContent = unknown.length
    ? `The training didn't know the value of ${unknown.join(", ")}.`
    : "";
  const body = JSON.stringify({ rows: [row] }).replaceAll("'", "'\\''");
  const url = new URL("predict", location.href);
  element("curl").textContent =
    `curl ${url} -H 'content-type: application/json' -d '${body}'`;
  element("scores").hidden = false;
  element("scores").scrollIntoView({ block: "nearest" });
}

function refuse(message, faults = []) {
  element("scores").hidden = true;
  element("error").textContent = message;
  element("error").hidden = false;
  if (message) element("error").scrollIntoView({ block: "nearest" });
  const wrong = new Set(faults.map((fault) => fault.field));
  for (const input of element("row").elements) {
    if (input.name) input.setAttribute("aria-invalid", String(wrong.has(input.name)));
  }
}

async function score(fields) {
  const inputs = [...element("row").elements].filter((input) => input.name);
  const row = Object.fromEntries(
    fields.map((field, place) => [field.name, valueOf(field, inputs[place].value)]),
  );
  const response = await fetch("predict", {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ rows: [row] }),
  });
  const answer = await response.json();
  refuse(answer.error || "", answer.faults);
  element("error").hidden = response.ok;
  if (response.ok) show(answer, row);
}

async function begin() {
  const about = await (await fetch("model")).json();
  element("model").textContent = `${about.model}, loaded ${new Date(about.loaded).toLocaleString()}`;
  element("fields").replaceChildren(...about.fields.map(inputOf));
  const button = document.querySelector("button");
  element("row").addEventListener("submit", async (event) => {
    event.preventDefault();
    button.disabled = true;
    try {
      await score(about.fields);
    } catch (error) {
      refuse(`The server can't be reached (${error.message}).`);
    } finally {
      button.disabled = false;
    }
  });
}

begin().catch((error) => refuse(`The server can't be reached (${error.message}).`));
