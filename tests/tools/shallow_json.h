// JSON of a few levels, for opcase and opbench: what goes on and on takes the stack when it is
// shown or copied.
#pragma once
#include <string>

#include "ebb/ebb.h"

inline constexpr size_t json_shown = 200;  // characters of what a case says, in an error's one line

// Discarded where `text` is not JSON. Error `limit` beyond 8 levels.
template <class Json>
Json parse_shallow(const std::string& op, const char* what, const std::string& text) {
  constexpr int deepest = 8;
  const auto check = [&](int depth, typename Json::parse_event_t, Json&) {
    ebb::require(depth <= deepest, ebb::Kind::limit, op, ebb::text(what, " is nested too deeply"),
                 text.substr(0, json_shown), ebb::text("at most ", deepest, " levels"));
    return true;
  };
  return Json::parse(text, check, false);
}
