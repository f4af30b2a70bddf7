// What an op says about a tensor that is not there. The table of opcase knows every op (golden.cpp
// sees to that), the golden cases how each is called.
#include <filesystem>

#include "tools/opcase/case.h"
#include "twins.h"

using namespace ebb;
using namespace ebb::test;

namespace {

opcase::Call good_call(const opcase::Op& op) {
  const std::string name = op.name;
  if (name == "dropout")  // has no golden cases
    return {
        name, {{"x", ones({2})}}, opcase::Attributes(name, op.attributes, opcase::Json::object())};
  return opcase::read_case(name, GOLDEN_CASES "/" + name + "-01.safetensors").call;
}

}  // namespace

TEST_CASE("undefined: every op refuses it by its own name, whichever argument it is") {
  for (const opcase::Op& op : opcase::ops()) {
    const opcase::Call good = good_call(op);
    op.run(good);
    for (const std::string& text : op.inputs) {
      const opcase::Input input(text);
      if (input.optional || input.list) continue;  // a list ends there: tests/ops/concat.cpp
      opcase::Call call = good;
      call.inputs.erase(input.name);
      INFO(good.op, ", ", input.name);
      check_error(Kind::state, {good.op + ": ", " is undefined"}, [&] { op.run(call); });
      op.run(good);
    }
  }
}
