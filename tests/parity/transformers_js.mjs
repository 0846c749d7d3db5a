// node transformers_js.mjs FOLDER TEXT COUNT: the greedy tokens that a model folder continues with.
import path from "node:path";
import { AutoModelForCausalLM, AutoTokenizer, env } from "@huggingface/transformers";

const [folder, text, count] = process.argv.slice(2);
env.allowRemoteModels = false;
env.localModelPath = path.dirname(folder);
const name = path.basename(folder);

const model = await AutoModelForCausalLM.from_pretrained(name, {
  subfolder: "",
  session_options: { extra: { session: { x64quantprecision: "1" } } },
});
const tokenizer = await AutoTokenizer.from_pretrained(name);
const inputs = tokenizer(text);
const output = await model.generate({ ...inputs, max_new_tokens: Number(count), do_sample: false });
const prompt = [...inputs.input_ids.data].map(Number);
const tokens = [...output.data].map(Number).slice(prompt.length);
const continued = tokenizer.decode(tokens, { skip_special_tokens: true });
console.log(JSON.stringify({ prompt, tokens, text: continued }));
